// SPDX-License-Identifier: Apache-2.0
//! Client of the envd of a Linux guest.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use wrenn_vmm::MicroVm;

use crate::outside::{MOVED_MB, OUTSIDE, SENDS};

const ENVD_PORT: u16 = 49983;
/// Time limit of a boot. Emulated guests take ten seconds, or minutes on a busy machine.
const READY: Duration = Duration::from_secs(300);

/// Exchanges one HTTP request with envd; `None` if it does not answer yet.
fn http(address: Ipv4Addr, request: &[u8]) -> Option<Vec<u8>> {
    let target = (std::net::IpAddr::V4(address), ENVD_PORT).into();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Waits until envd answers and returns how long that took.
pub(crate) fn wait_ready(address: Ipv4Addr, vm: &dyn MicroVm) -> Duration {
    let begin = Instant::now();
    let request = b"GET /health HTTP/1.1\r\nhost: envd\r\nconnection: close\r\n\r\n";
    loop {
        if http(address, request).is_some_and(|answer| answer.starts_with(b"HTTP/1.1 204")) {
            return begin.elapsed();
        }
        assert!(wrenn_os::process::is_alive(&vm.process()).unwrap(), "the microVM ended");
        assert!(begin.elapsed() < READY, "the guest at {address} does not get ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a shell script in the guest and returns its output.
pub(crate) fn run(address: Ipv4Addr, script: &str) -> String {
    decoded(&ask(address, script).expect("an answer"))
}

/// Runs a shell script and returns envd's event stream; `None` if the guest exits before it answers.
pub(crate) fn ask(address: Ipv4Addr, script: &str) -> Option<String> {
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

/// Returns the run time in seconds of a Python program in the guest.
fn seconds(address: Ipv4Addr, program: &str) -> f64 {
    let timed = format!(
        "python3 -c '\nimport os, socket, time\nbegin = time.monotonic()\n{program}\nprint(time.monotonic() - begin)'"
    );
    let said = run(address, &timed);
    said.trim().parse().unwrap_or_else(|error| panic!("{program}: {said:?}: {error}"))
}

/// Returns the time to receive [`MOVED_MB`] in seconds.
pub(crate) fn download(address: Ipv4Addr) -> f64 {
    seconds(
        address,
        &format!(
            "peer, got = socket.create_connection((\"{OUTSIDE}\", {SENDS}), 100), 0
while part := peer.recv(65536): got += len(part)
assert got == {MOVED_MB} << 20, got"
        ),
    )
}

/// Returns the time to write [`MOVED_MB`] to the disk in seconds.
pub(crate) fn write(address: Ipv4Addr) -> f64 {
    seconds(
        address,
        &format!(
            "file = os.open(\"/root/much\", os.O_CREAT | os.O_WRONLY)
assert os.write(file, bytes({MOVED_MB} << 20)) == {MOVED_MB} << 20
os.fsync(file)"
        ),
    )
}

/// Extracts standard output from an event stream of envd.
fn decoded(stream: &str) -> String {
    let chunks = stream.split("\"stdout\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let bytes = chunks.flat_map(|chunk| STANDARD.decode(chunk).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}
