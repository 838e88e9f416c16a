// SPDX-License-Identifier: Apache-2.0
//! Checks of the machine: kernel, CPU, programs and users.

use std::{fs, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use super::Check;
use crate::{
    up::{postgres, redis},
    users,
};

/// Oldest tested kernel: namespaces, pidfds and nftables work as needed.
const KERNEL_MIN: (u32, u32) = (5, 10);
const PROGRAM_LIMIT: Duration = Duration::from_secs(3);

pub(super) fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return Check::ok("kernel", format!("Linux {release}"));
    }
    let (major, minor) = KERNEL_MIN;
    let remedy = format!("upgrade to Linux {major}.{minor} or newer");
    Check::fail("kernel", format!("Linux {release} is too old"), remedy)
}

pub(super) fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        return Check::ok("root", "we are root");
    }
    Check::warn("root", "we are not root, so some checks say less", "run: sudo wrenn doctor")
}

pub(super) fn cpu() -> Check {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    for (flag, name) in [("vmx", "Intel VT-x"), ("svm", "AMD-V")] {
        if flags.split_whitespace().any(|word| word == flag) {
            return Check::ok("cpu", format!("{name} ({flag})"));
        }
    }
    if std::path::Path::new("/dev/kvm").exists() {
        return Check::ok("cpu", "it shows no virtualisation (vmx or svm), but there is /dev/kvm");
    }
    Check::warn(
        "cpu",
        "the processor shows no virtualisation (vmx or svm)",
        "enable it in the firmware, or nested virtualisation in the cloud; emulation works without",
    )
}

pub(super) fn service_users() -> Check {
    let name = "service users";
    let users = match users::Services::find() {
        Ok(users) => users,
        Err(error) => return Check::fail(name, "there are none", format!("{error:#}")),
    };
    match users.lack() {
        Some((detail, remedy)) => Check::warn(name, detail, remedy),
        None => {
            let all = [&users.server, &users.postgres, &users.redis]
                .map(|user| format!("{} ({})", user.name, user.uid));
            Check::ok(name, all.join(", "))
        }
    }
}

pub(super) async fn programs() -> Vec<Check> {
    let programs = [
        (wrenn_vmm::qemu::PROGRAM, "--version", "qemu-system-x86"),
        ("nft", "--version", "nftables"),
        ("ip", "-V", "iproute2"),
        ("mkfs.xfs", "-V", "xfsprogs"),
        ("unshare", "--version", "util-linux"),
    ];
    let checks = programs.map(|(program, flag, package)| program_check(program, flag, package));
    let mut checks = futures::future::join_all(checks).await;
    checks.push(match postgres::programs(std::path::Path::new("/nonexistent")) {
        Ok(bin) => Check::ok("postgres", bin.join("postgres").display().to_string()),
        Err(error) => Check::fail("postgres", "not found", format!("{error:#}")),
    });
    checks.push(match redis::program() {
        Ok(program) => Check::ok("redis", program.display().to_string()),
        Err(error) => Check::fail("redis", "not found", format!("{error:#}")),
    });
    checks
}

async fn program_check(program: &str, flag: &str, package: &str) -> Check {
    let mut command = Command::new(program);
    command.arg(flag).stdin(Stdio::null()).kill_on_drop(true);
    let remedy = || format!("Debian: apt-get install {package}");
    match timeout(PROGRAM_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Check::ok(program, text.lines().next().unwrap_or_default())
        }
        Ok(Ok(output)) => Check::fail(program, format!("{program} {flag}: {}", output.status), remedy()),
        Ok(Err(error)) => Check::fail(program, format!("cannot run it: {error}"), remedy()),
        Err(_) => Check::fail(program, format!("{program} {flag} does not end"), remedy()),
    }
}
