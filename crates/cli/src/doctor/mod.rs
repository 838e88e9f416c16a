// SPDX-License-Identifier: Apache-2.0
//! `wrenn doctor`: checks whether Wrenn can run here, with remedies.

mod driver;
mod files;
mod machine;
mod network;
mod scratch;

use anyhow::Result;
use serde::Serialize;
use wrenn_vmm::probe::Probe;

pub(crate) use self::scratch::Scratch;
use crate::{config::Config, output::Format, signals};

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Wrenn runs, with a limitation.
    Warn,
    /// Wrenn does not run.
    Fail,
}

/// A check.
#[derive(Debug, Clone, Serialize)]
struct Check {
    name: String,
    status: Level,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Check {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Level::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Level::Warn, remedy: remedy.into(), ..Self::ok(name, detail) }
    }

    fn fail(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Level::Fail, remedy: remedy.into(), ..Self::ok(name, detail) }
    }
}

/// The way to run guests.
#[derive(Debug, Serialize)]
struct Driver {
    name: &'static str,
    /// `kvm`, or `tcg`: emulation.
    accelerator: &'static str,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    driver: Driver,
    kvm: Probe,
    checks: Vec<Check>,
}

/// Runs `wrenn doctor`.
pub(crate) async fn run(config: &Config, format: Format) -> Result<u8> {
    let mut checks = vec![machine::kernel(), machine::root(), machine::cpu()];
    let (mut stop, scratch) = (signals::Stop::new()?, Scratch::new()?);
    let examined = tokio::select! {
        examined = driver::examine(config, &scratch) => examined,
        name = stop.received() => {
            scratch.end_vmm().await?;
            return Ok(signals::exit_status(name));
        }
    };
    drop(scratch);
    let (kvm, driver, found) = examined?;
    checks.extend(found);
    checks.extend(machine::programs().await);
    checks.extend([machine::service_users(), files::state_dir(config), files::reflinks(config)]);
    checks.extend(network::kernel().await);
    checks.extend(network::ports(config)?);
    checks.extend(files::share(config)?);
    checks.push(driver::in_use(config).await);
    let ok = checks.iter().all(|check| check.status != Level::Fail);
    let report = Report { ok, driver, kvm, checks };
    format.print(&report, || report.text())?;
    Ok(u8::from(!ok))
}

impl Report {
    fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for check in &self.checks {
            let mark = match check.status {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            lines.push(format!("{mark}  {:<18} {}", check.name, check.detail));
            if !check.remedy.is_empty() {
                lines.push(format!("{:25}→ {}", "", check.remedy));
            }
        }
        // Problems of KVM are reported above.
        let reason = &self.driver.reason;
        let repeats = !self.kvm.reason.is_empty() && reason.contains(&self.kvm.reason);
        let reason = if repeats && !self.kvm.usable { "see kvm above" } else { reason };
        lines.push(format!("\ndriver: {} with {} ({reason})", self.driver.name, self.driver.accelerator));
        let verdict = if self.ok { "Wrenn can run here." } else { "Wrenn cannot run here yet: see FAIL." };
        lines.push(verdict.to_owned());
        lines.join("\n")
    }
}
