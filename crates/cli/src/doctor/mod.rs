//! `wrenn doctor`: checks whether Wrenn can run here, with remedies.

mod driver;
mod files;
mod machine;
mod network;

use anyhow::Result;
use serde::Serialize;
use wrenn_vmm::probe::Probe;

use crate::{config::Config, output::Format};

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
    let (kvm, driver, found) = driver::examine(config).await?;
    checks.extend(found);
    checks.extend(machine::programs().await);
    checks.extend([machine::service_user(), files::state_dir(config), files::reflinks(config)]);
    checks.extend(network::kernel().await);
    checks.extend(network::ports(config)?);
    checks.extend(files::share(config)?);
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
        lines.push(format!(
            "\ndriver: {} with {} ({})",
            self.driver.name, self.driver.accelerator, self.driver.reason
        ));
        let verdict = if self.ok { "Wrenn can run here." } else { "Wrenn cannot run here yet: see FAIL." };
        lines.push(verdict.to_owned());
        lines.join("\n")
    }
}
