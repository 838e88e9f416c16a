// SPDX-License-Identifier: Apache-2.0
//! The program: Wrenn's control plane with the extension.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let config = wrenn_control::Config::from_env()?;
    wrenn_control::Server::builder(config).with_extension(enterprise::Enterprise).run().await
}
