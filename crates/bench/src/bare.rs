// SPDX-License-Identifier: Apache-2.0
//! Bare client of Firecracker and its jailer: the floor for Wrenn's driver, with as few steps as possible.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::{fs::chown, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wrenn_vmm::{
    BootSpec, SnapshotFiles,
    firecracker::{JAILER, PROGRAM},
};

/// Longer than Firecracker and the test guest take to answer, even in the lab.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(200);
/// Kernel command line that the driver gives every guest.
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1";

/// Paths of Firecracker and its jailer.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) firecracker: PathBuf,
    pub(crate) jailer: PathBuf,
}

impl Programs {
    /// Finds the programs fetched for tests, else the installed ones.
    pub(crate) fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [PathBuf::from("target/firecracker")].into_iter().chain(std::env::split_paths(&path));
        let both = dirs
            .filter_map(|dir| fs::canonicalize(dir).ok())
            .find(|dir| dir.join(PROGRAM).exists() && dir.join(JAILER).exists())
            .context(
                "no Firecracker with its jailer in target/firecracker or PATH: run lab/get-firecracker",
            )?;
        Ok(Self { firecracker: both.join(PROGRAM), jailer: both.join(JAILER) })
    }
}

/// Waits until the guest has said something; all sides poll in the same way.
pub(crate) fn wait_for_byte(said: impl Fn() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !said() {
        ensure!(begin.elapsed() < LIMIT, "the guest says nothing");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Firecracker started by hand. Dropping this kills it.
pub(crate) struct Bare {
    child: Child,
    base: PathBuf,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Kill and reap it in any state.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Remove the program and devices that the jailer made.
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// Sends one API request; a connection serves many.
fn call(stream: &mut UnixStream, path: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    // An error also arrives in one read.
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]);
    ensure!(text.starts_with("HTTP/1.1 204"), "{path}: {text}");
    Ok(())
}

/// Sends the API requests that the driver sends for the same description.
fn configure(stream: &mut UnixStream, spec: &BootSpec) -> Result<()> {
    let machine = json!({"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mb, "track_dirty_pages": spec.track_changes});
    call(stream, "/machine-config", &machine)?;
    let mut source =
        json!({"kernel_image_path": "kernel", "boot_args": format!("{CMDLINE} {}", spec.cmdline)});
    if spec.initrd.is_some() {
        source["initrd_path"] = "initrd".into();
    }
    call(stream, "/boot-source", &source)?;
    call(stream, "/entropy", &json!({}))?;
    if spec.disk.is_some() {
        let drive = json!({"drive_id": "root", "path_on_host": "disk", "is_root_device": false, "is_read_only": false, "cache_type": "Writeback"});
        call(stream, "/drives/root", &drive)?;
    }
    if let Some(tap) = &spec.tap {
        let interface = json!({"iface_id": "eth0", "guest_mac": tap.mac, "host_dev_name": tap.name});
        call(stream, "/network-interfaces/eth0", &interface)?;
    }
    call(stream, "/actions", &json!({"action_type": "InstanceStart"}))
}

impl Bare {
    /// Creates a jail in `base` and boots a guest in it with its console in `console`. `base` must have no
    /// other jail and be on the file system of the guest's files, because they are hard-linked.
    pub(crate) fn boot(programs: &Programs, base: &Path, spec: &BootSpec, console: &Path) -> Result<Self> {
        let files =
            [(Some(&spec.kernel), "kernel"), (spec.initrd.as_ref(), "initrd"), (spec.disk.as_ref(), "disk")];
        let files: Vec<_> = files.into_iter().filter_map(|(file, name)| Some((file?, name))).collect();
        let (bare, mut control) = Self::start(programs, base, spec, &files, console)?;
        configure(&mut control, spec)?;
        Ok(bare)
    }

    /// The same for a snapshot, whose guest runs at once.
    pub(crate) fn restore(
        programs: &Programs,
        base: &Path,
        spec: &BootSpec,
        files: &SnapshotFiles,
        console: &Path,
    ) -> Result<Self> {
        let files = [(&files.state, "state"), (&files.memory, "memory")];
        let (bare, mut control) = Self::start(programs, base, spec, &files, console)?;
        let load = json!({
            "snapshot_path": "state",
            "mem_backend": { "backend_type": "File", "backend_path": "memory" },
            "resume_vm": true,
        });
        call(&mut control, "/snapshot/load", &load)?;
        Ok(bare)
    }

    /// Starts Firecracker in a jail with these files.
    fn start(
        programs: &Programs,
        base: &Path,
        spec: &BootSpec,
        files: &[(&PathBuf, &str)],
        console: &Path,
    ) -> Result<(Self, UnixStream)> {
        let root = base.join("firecracker").join(&spec.id).join("root");
        fs::create_dir_all(&root)?;
        for (file, name) in files {
            fs::hard_link(file, root.join(name))
                .with_context(|| format!("cannot link {}", file.display()))?;
        }
        if spec.disk.is_some() {
            chown(root.join("disk"), Some(spec.uid), Some(spec.gid))?;
        }
        let mut command = Command::new(&programs.jailer);
        command.args(["--id", &spec.id, "--exec-file"]).arg(&programs.firecracker);
        command
            .args(["--uid", &spec.uid.to_string(), "--gid", &spec.gid.to_string(), "--chroot-base-dir"])
            .arg(base);
        if let Some(tap) = &spec.tap {
            command.arg("--netns").arg(&tap.netns);
        }
        command.args(["--", "--api-sock", "/api.sock"]).stdin(Stdio::null());
        command.stdout(File::create(console)?).stderr(Stdio::null());
        let child = command.spawn().context("the jailer cannot be started")?;
        let mut bare = Self { child, base: base.to_owned() };
        let control = bare.connect(&root.join("api.sock"))?;
        Ok((bare, control))
    }

    fn connect(&mut self, socket: &Path) -> Result<UnixStream> {
        let begin = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("Firecracker ended: {status}");
            }
            ensure!(begin.elapsed() < LIMIT, "Firecracker does not answer");
            thread::sleep(PAUSE);
        }
    }
}
