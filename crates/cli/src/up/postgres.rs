// SPDX-License-Identifier: Apache-2.0
//! The private PostgreSQL: Debian's program, reachable by a unix socket only.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tokio::{process::Command, time::timeout};

use super::child::{Privileges, Spec, Supervised};
use crate::{layout::Layout, users::User};

/// OOM score adjustment of PostgreSQL and Redis: they are killed long after any guest.
pub(super) const STORE_OOM_SCORE: i32 = -800;
/// Debian's directory of PostgreSQL, with a subdirectory per major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Name of the cluster's user and of the database.
const NAME: &str = "wrenn";
const INIT_LIMIT: Duration = Duration::from_secs(60);
/// Time limit of the start, with recovery after a crash.
const READY_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(12);

/// Directory of the programs for the version of the cluster in `data`, or of the newest version.
pub(crate) fn programs(data: &Path) -> Result<PathBuf> {
    let install = "install PostgreSQL (Debian: apt-get install postgresql)";
    let entries = fs::read_dir(VERSIONS).with_context(|| format!("no {VERSIONS}: {install}"))?;
    let mut versions: Vec<u32> = entries
        .flatten()
        .filter(|entry| entry.path().join("bin/postgres").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest = *versions.last().with_context(|| format!("no postgres in {VERSIONS}: {install}"))?;
    let version = match fs::read_to_string(data.join("PG_VERSION")) {
        Ok(text) => text.trim().parse().with_context(|| format!("{}: not a version", data.display()))?,
        Err(_) => newest,
    };
    ensure!(
        versions.contains(&version),
        "{} was made by PostgreSQL {version}, which is not installed: install postgresql-{version}",
        data.display()
    );
    Ok(Path::new(VERSIONS).join(version.to_string()).join("bin"))
}

/// Creates the cluster if it is missing, and returns the child's specification.
pub(crate) async fn prepare(layout: &Layout, user: &User) -> Result<Spec> {
    let (data, bin) = (layout.postgres(), programs(&layout.postgres())?);
    if !data.join("PG_VERSION").exists() {
        init(layout, user, &bin).await?;
    }
    let mut args = vec!["-D".to_owned(), text(&data)?];
    for setting in [
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories={}", text(&layout.postgres_sockets())?),
        // Their directory gives them the group of the control plane; other users have no access.
        "unix_socket_permissions=0770".to_owned(),
        "port=5432".to_owned(),
        "max_connections=100".to_owned(),
        "shared_buffers=64MB".to_owned(),
        "logging_collector=off".to_owned(),
        "cluster_name=wrenn".to_owned(),
    ] {
        args.extend(["-c".to_owned(), setting]);
    }
    Ok(Spec {
        name: "postgres",
        program: bin.join("postgres"),
        arg0: None,
        args,
        env: Vec::new(),
        privileges: Privileges::User(user.clone()),
        oom_score: STORE_OOM_SCORE,
        group: None,
        // Fast shutdown: open transactions are rolled back, connections closed.
        stop: Signal::INT,
        grace: GRACE,
    })
}

/// Initialises the cluster in another directory and renames it, so that an interrupted attempt is never taken
/// for a cluster.
async fn init(layout: &Layout, user: &User, bin: &Path) -> Result<()> {
    let (data, beside) = (layout.postgres(), layout.postgres().with_extension("new"));
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| format!("cannot remove {}", beside.display()))?;
    }
    fs::create_dir(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
    chown(&beside, Some(user.uid), Some(user.gid))?;
    let mut command = Command::new(bin.join("initdb"));
    command.arg("-D").arg(&beside).args(["-U", NAME, "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8"]);
    let output = run(command.uid(user.uid).gid(user.gid), INIT_LIMIT).await?;
    ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    fs::rename(&beside, &data)
        .with_context(|| format!("{} is no cluster and not empty: move it away", data.display()))
}

/// Waits until it responds, and creates the database if it is missing.
pub(crate) async fn ready(child: &Supervised, layout: &Layout) -> Result<()> {
    let bin = programs(&layout.postgres())?;
    let answers = async || {
        let mut command = connect(&bin, "pg_isready", layout);
        run(command.args(["-q", "-t", "3"]), COMMAND_LIMIT).await.is_ok_and(|output| output.status.success())
    };
    child.ready(READY_LIMIT, answers).await?;
    let mut command = connect(&bin, "psql", layout);
    command.args(["-X", "-A", "-t", "-d", "postgres", "-c"]);
    command.arg(format!("select 1 from pg_database where datname = '{NAME}'"));
    if checked(&mut command).await?.trim() != "1" {
        checked(connect(&bin, "createdb", layout).arg(NAME)).await?;
    }
    Ok(())
}

fn connect(bin: &Path, program: &str, layout: &Layout) -> Command {
    let mut command = Command::new(bin.join(program));
    command.arg("-h").arg(layout.postgres_sockets()).args(["-p", "5432", "-U", NAME]);
    command
}

async fn checked(command: &mut Command) -> Result<String> {
    let output = run(command, COMMAND_LIMIT).await?;
    let program = command.as_std().get_program().display();
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").current_dir("/");
    command.stdin(Stdio::null()).kill_on_drop(true);
    // SAFETY: between fork and exec, only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(wrenn_os::inherit::close_files_on_exec) };
    let program = command.as_std().get_program().display().to_string();
    match timeout(limit, command.output()).await {
        Ok(output) => output.with_context(|| format!("cannot run {program}")),
        Err(_) => bail!("{program} did not end within {} s", limit.as_secs()),
    }
}

/// Converts a path to an argument.
pub(super) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
