// SPDX-License-Identifier: Apache-2.0
//! The VMM driver that the agent of this machine uses, as it says itself.

use std::fs;

use wrenn_control::{
    AgentTls,
    agents::{Agents, DriverInUse},
};

use crate::{config::Config, host_id, layout::Layout, pki, process::Record};

/// Asks the running agent which driver it uses. The error says why that is not known.
pub(crate) async fn driver(config: &Config, layout: &Layout) -> Result<DriverInUse, String> {
    let running = Record::running(&layout.pid_file("agent")).map_err(|error| format!("{error:#}"))?;
    if running.is_none() {
        return Err("the agent does not run".to_owned());
    }
    let tls = pki::side(&layout.pki(), "control");
    if fs::File::open(&tls.key).is_err() {
        return Err("only root can ask the agent".to_owned());
    }
    let asked = async {
        let agents = Agents::new(&AgentTls::new(tls.ca, tls.cert, tls.key))?;
        agents.driver_of(host_id::load(layout)?, config.agent().listen).await
    };
    asked.await.map_err(|error: anyhow::Error| format!("the agent does not answer: {error:#}"))
}
