//! Firecracker in its jail, started by hand: as few steps as it takes, and its API spoken over a plain socket.

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
    BootSpec,
    firecracker::{JAILER, PROGRAM},
};

/// Longer than Firecracker takes to answer, in the lab too.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(200);
/// What the driver gives every guest.
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=1";

/// Firecracker's and its jailer's programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) firecracker: PathBuf,
    pub(crate) jailer: PathBuf,
}

impl Programs {
    /// Those fetched for tests, or else those that are installed.
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

/// A Firecracker started by hand. It ends with this.
pub(crate) struct Bare {
    child: Child,
    base: PathBuf,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It is killed whatever state it is in, and reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The jailer left its program and devices.
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// One call; a connection serves many.
fn call(stream: &mut UnixStream, path: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    // A refusal comes in one piece as well.
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]);
    ensure!(text.starts_with("HTTP/1.1 204"), "{path}: {text}");
    Ok(())
}

/// The calls that make what the driver makes of the same description.
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
    /// Makes a jail in `base`, which has no other and is on the file system of the guest's files, and starts a
    /// guest in it whose console goes to `console`.
    pub(crate) fn boot(programs: &Programs, base: &Path, spec: &BootSpec, console: &Path) -> Result<Self> {
        let root = base.join("firecracker").join(&spec.id).join("root");
        fs::create_dir_all(&root)?;
        let files =
            [(Some(&spec.kernel), "kernel"), (spec.initrd.as_ref(), "initrd"), (spec.disk.as_ref(), "disk")];
        for (file, name) in files {
            let Some(file) = file else { continue };
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
        configure(&mut bare.connect(&root.join("api.sock"))?, spec)?;
        Ok(bare)
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
