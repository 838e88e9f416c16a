//! A whole guest, as sandboxes are: Debian on a dm-snapshot disk, in a network slot, jailed; paused, snapshotted,
//! and restored several times at once under other ids, in other slots, on disks of their own.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tempfile::TempDir;
use wrenn_disk::{Backend, StoreConfig, Volumes};
use wrenn_network::{Egress, GUEST_ADDRESS, GUEST_RESOLVERS, PoolConfig, SlotPool, SlotSpec, TAP_ADDRESS};
use wrenn_vmm::{BootSpec, MemorySource, MicroVm, Rate, Snapshot, SnapshotFiles, SnapshotKind, Tap};

use crate::rig::{Dir, Rig, share};

const CLONES: usize = 3;
/// The clone whose disk has a limit.
const SLOW_DISK: usize = 1;
const ENVD_PORT: u16 = 49983;
const DISK_MB: u64 = 2048;
/// Emulated machines boot in ten seconds, and in some minutes when they are busy.
const READY: Duration = Duration::from_secs(300);
/// Stands for the internet.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const INSTANCE: &str = "vc";
/// Bytes a second that a slow device moves. What it has not used of a second it moves at once.
const SLOW: Rate = Rate { bytes: Some(512 << 10), operations: None };
/// What is moved by it, in MiB, and the least time that takes: without the first second, and a last request that may
/// exceed what is left.
const MOVED_MB: u64 = 4;
const MOVED_IN: f64 = 4.0;

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The resolvers of the network that the snapshot is taken in, and of the one that it is restored in. Their answer is
/// an address that ends as theirs.
const RESOLVERS: [Ipv4Addr; 2] = [OUTSIDE, Ipv4Addr::new(203, 0, 113, 10)];
const NAME_SERVER: &str = r#"
import socket, sys, threading
def serve(address):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    while True:
        query, client = server.recvfrom(512)
        end = 12
        while query[end]:
            end += query[end] + 1
        known = query[end + 1:end + 3] == b"\0\1"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + bytes([192, 0, 2, int(address.split(".")[3])])
        server.sendto(head + query[12:end + 5] + (answer if known else b""), client)
for address in sys.argv[1:]:
    threading.Thread(target=serve, args=(address,)).start()
"#;

/// A namespace with a server that greets who connects, one that sends much, and resolvers.
struct Outside([std::process::Child; 3]);

impl Outside {
    fn new() -> Self {
        sh("ip netns add outside
            ip link add outside0 type veth peer name eth0 netns outside
            ip address add 203.0.113.1/24 dev outside0
            ip link set outside0 up
            ip -n outside address add 203.0.113.9/24 dev eth0
            ip -n outside address add 203.0.113.10/24 dev eth0
            ip -n outside link set eth0 up");
        let inside = ["netns", "exec", "outside"];
        let greet = ["socat", "TCP-LISTEN:7777,fork,reuseaddr", "SYSTEM:echo hello"];
        let send = format!("SYSTEM:head -c {} /dev/zero", MOVED_MB << 20);
        let much = ["socat", "TCP-LISTEN:7778,fork,reuseaddr", &send];
        let addresses = RESOLVERS.map(|address| address.to_string());
        let names = ["python3", "-c", NAME_SERVER, &addresses[0], &addresses[1]];
        Self(
            [&greet[..], &much[..], &names[..]]
                .map(|serve| Command::new("ip").args(inside).args(serve).spawn().unwrap()),
        )
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
        sh("ip netns delete outside");
    }
}

/// One HTTP exchange with envd; `None` where nobody answers yet.
fn http(address: Ipv4Addr, request: &[u8]) -> Option<Vec<u8>> {
    let target = (std::net::IpAddr::V4(address), ENVD_PORT).into();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn wait_ready(address: Ipv4Addr, vm: &dyn MicroVm) -> Duration {
    let begin = Instant::now();
    let request = b"GET /health HTTP/1.1\r\nhost: envd\r\nconnection: close\r\n\r\n";
    loop {
        if http(address, request).is_some_and(|answer| answer.starts_with(b"HTTP/1.1 204")) {
            return begin.elapsed();
        }
        assert!(wrenn_vmm::process::is_alive(&vm.process()), "the microVM ended");
        assert!(begin.elapsed() < READY, "the guest at {address} does not get ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a shell script in the guest and gives what it printed, as envd's stream of frames has it.
fn run(address: Ipv4Addr, script: &str) -> String {
    ask(address, script).expect("an answer")
}

/// The same, of a guest that may be gone before it answers.
fn ask(address: Ipv4Addr, script: &str) -> Option<String> {
    let body = serde_json::json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] } }).to_string();
    let length = u32::try_from(body.len()).unwrap();
    let mut request = format!(
        "POST /process.Process/Start HTTP/1.1\r\nhost: envd\r\nconnection: close\r\n\
         content-type: application/connect+json\r\nconnect-protocol-version: 1\r\ncontent-length: {}\r\n\r\n",
        length + 5
    )
    .into_bytes();
    request.push(0);
    request.extend(length.to_be_bytes());
    request.extend(body.as_bytes());
    Some(String::from_utf8_lossy(&http(address, &request)?).into_owned())
}

/// A guest's question for a name, and what it is told.
const ASK: &str = "python3 -c 'import socket; print(socket.gethostbyname(\"some.name\"))'";

fn told(resolver: Ipv4Addr) -> String {
    format!("192.0.2.{}", resolver.octets()[3])
}

/// How long the guest takes for a program in Python, in seconds.
fn seconds(address: Ipv4Addr, program: &str) -> f64 {
    let timed = format!(
        "python3 -c '\nimport os, socket, time\nbegin = time.monotonic()\n{program}\nprint(time.monotonic() - begin)'"
    );
    let said = decoded(&run(address, &timed));
    said.trim().parse().unwrap_or_else(|error| panic!("{program}: {said:?}: {error}"))
}

/// How long it takes to receive [`MOVED_MB`].
fn download(address: Ipv4Addr) -> f64 {
    seconds(
        address,
        &format!(
            "peer, got = socket.create_connection((\"{OUTSIDE}\", 7778), 100), 0
while part := peer.recv(65536): got += len(part)
assert got == {MOVED_MB} << 20, got"
        ),
    )
}

/// How long it takes to write [`MOVED_MB`] to the disk.
fn write(address: Ipv4Addr) -> f64 {
    seconds(
        address,
        &format!(
            "file = os.open(\"/root/much\", os.O_CREAT | os.O_WRONLY)
assert os.write(file, bytes({MOVED_MB} << 20)) == {MOVED_MB} << 20
os.fsync(file)"
        ),
    )
}

struct Place {
    volumes: Arc<dyn Volumes>,
    store: PathBuf,
    slots: Arc<SlotPool>,
    dir: TempDir,
}

impl Place {
    async fn new() -> Self {
        let dir = TempDir::new_in("/var/lib/wrenn").unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let store = dir.path().join("volumes");
        fs::create_dir(&store).unwrap();
        let volumes = wrenn_disk::open(StoreConfig::new(&store, Backend::Dm, INSTANCE)).await.unwrap();
        let slots = Self::slots(&dir, RESOLVERS[0]).await;
        Self { volumes, store, slots, dir }
    }

    async fn slots(dir: &TempDir, resolver: Ipv4Addr) -> Arc<SlotPool> {
        let config = PoolConfig {
            state_dir: dir.path().join("network"),
            instance: INSTANCE.into(),
            warm: 1,
            max: 32,
            egress: Egress::Nat,
            resolvers: vec![resolver],
            permitted: Vec::new(),
            in_use: Vec::new(),
        };
        SlotPool::start(config).await.unwrap()
    }

    /// The machine comes into another network.
    async fn moves(&mut self) {
        self.slots.shutdown().await.unwrap();
        self.slots = Self::slots(&self.dir, RESOLVERS[1]).await;
    }

    /// A microVM that boots from, or goes on with, this disk in this slot.
    fn spec(rig: &Rig, dir: &Dir, id: &str, disk: &Path, slot: &SlotSpec) -> BootSpec {
        BootSpec {
            id: id.to_owned(),
            cmdline: format!(
                "wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS} wrenn.dns={}",
                GUEST_RESOLVERS.map(|address| address.to_string()).join(",")
            ),
            disk: Some(disk.to_owned()),
            tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
            ..rig.spec(dir)
        }
    }

    /// The disk of a paused guest once more, under another id.
    async fn fork_disk(&self, from: &str, to: &str, owner: u32) -> PathBuf {
        let file = |id: &str, end: &str| self.store.join("volumes").join(format!("{id}.{end}"));
        for end in ["cow", "json"] {
            sh(&format!("cp --sparse=always {} {}", file(from, end).display(), file(to, end).display()));
        }
        self.volumes.attach(to, owner).await.unwrap().path
    }
}

pub(crate) async fn one_snapshot_runs_several_times_at_once(rig: &Rig) {
    let mut place = Place::new().await;
    let outside = Outside::new();
    place.volumes.prepare("minimal", &share("images/minimal/rootfs.ext4")).await.unwrap();
    let dir = Dir::new();
    let slot = place.slots.acquire().await.unwrap();
    let uid = rig.spec(&dir).uid;
    let disk = place.volumes.clone_image("minimal", "first", DISK_MB, uid).await.unwrap();
    assert!(disk.numbers.is_some(), "a block device");
    let spec = BootSpec { network_rate: SLOW, ..Place::spec(rig, &dir, "first", &disk.path, &slot) };
    let vm = rig.driver.boot(&spec).await.unwrap();
    let ready = wait_ready(slot.host_address, &*vm);
    println!("envd answers {ready:?} after the boot call");
    run(slot.host_address, "echo written before > /root/marker; sync");
    let size = decoded(&run(slot.host_address, "df -BM --output=size / | tail -n 1 | tr -d ' M'"));
    let size: u64 = size.trim().parse().unwrap();
    assert!((DISK_MB * 9 / 10..=DISK_MB).contains(&size), "the guest sees a disk of {size} MiB");

    assert_eq!(decoded(&run(slot.host_address, ASK)).trim(), told(RESOLVERS[0]));
    let (sent, written) = (download(slot.host_address), write(slot.host_address));
    println!("a slow network and a free disk move {MOVED_MB} MiB in {sent:.2} and {written:.2} s");
    assert!(sent > MOVED_IN, "the network has no limit");
    vm.pause().await.unwrap();
    let file = |name: &str| dir.path().join(name);
    let files = SnapshotFiles { state: file("state"), memory: file("memory") };
    vm.snapshot(SnapshotKind::Full, &files).await.unwrap();
    for path in [&files.state, &files.memory] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    vm.kill().await.unwrap();
    place.slots.release(slot.index).await.unwrap();
    place.volumes.detach("first").await.unwrap();
    place.moves().await;

    let mut clones = Vec::new();
    for number in 0..CLONES {
        let (dir, id, slot) = (Dir::new(), format!("clone{number}"), place.slots.acquire().await.unwrap());
        let disk = place.fork_disk("first", &id, uid).await;
        let mut spec = Place::spec(rig, &dir, &id, &disk, &slot);
        if number == SLOW_DISK {
            spec.disk_rate = SLOW;
        }
        let memory = MemorySource::File(files.memory.clone());
        let snapshot = Snapshot { state: files.state.clone(), memory, run: true };
        let vm = rig.driver.restore(&snapshot, &spec).await.unwrap();
        place.slots.refresh(slot.index).await.unwrap();
        clones.push((dir, id, slot, vm));
    }
    let addresses: Vec<_> = clones.iter().map(|(_, _, slot, _)| slot.host_address).collect();
    for (_, _, slot, vm) in &clones {
        wait_ready(slot.host_address, &**vm);
    }
    // All at once: each is reached, reads what was written before, writes its own, and reaches the outside.
    let talk = addresses.iter().enumerate().map(|(number, &address)| {
        std::thread::spawn(move || {
            let script = format!(
                "cat /root/marker; echo {number} > /root/own; sync; cat /root/own; python3 -c '
import socket
print(socket.gethostbyname(\"some.name\"))
print(socket.create_connection((\"{OUTSIDE}\", 7777), 100).recv(64).decode())'"
            );
            run(address, &script)
        })
    });
    let talks: Vec<_> = talk.collect();
    for (number, talk) in talks.into_iter().enumerate() {
        let said = decoded(&talk.join().unwrap());
        let expected = format!("written before\n{number}\n{}\nhello\n", told(RESOLVERS[1]));
        assert!(said.starts_with(&expected), "clone {number} said {said:?}");
    }
    // Its limits are those it was started with, not those of the snapshot.
    let (sent, written) = (download(addresses[SLOW_DISK]), write(addresses[SLOW_DISK]));
    println!("a free network and a slow disk move {MOVED_MB} MiB in {sent:.2} and {written:.2} s");
    assert!(written > MOVED_IN, "the disk has no limit");
    // One of them is shut down from inside; the VMM has no power button.
    let off = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'";
    let halted = addresses[0];
    let asked = std::thread::spawn(move || ask(halted, off));
    let ended = tokio::time::timeout(Duration::from_secs(60), clones[0].3.exited()).await;
    ended.expect("a guest that powers off ends its VMM");
    drop(asked.join());
    for (_, id, slot, vm) in &clones {
        vm.kill().await.unwrap();
        place.slots.release(slot.index).await.unwrap();
        place.volumes.remove(id).await.unwrap();
    }
    place.volumes.remove("first").await.unwrap();
    place.slots.shutdown().await.unwrap();
    wrenn_network::cleanup(&place.dir.path().join("network"), INSTANCE).await.unwrap();
    drop(outside);
    let left = wrenn_network::leftovers(&place.dir.path().join("network"), INSTANCE).unwrap();
    assert_eq!(left, [] as [String; 0]);
    let maps = Command::new("dmsetup").arg("ls").output().unwrap();
    assert!(!String::from_utf8_lossy(&maps.stdout).contains(&format!("wr{INSTANCE}-")), "{maps:?}");
}

/// The standard output in a stream of envd's events.
fn decoded(stream: &str) -> String {
    let chunks = stream.split("\"stdout\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let bytes = chunks.flat_map(|chunk| STANDARD.decode(chunk).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}
