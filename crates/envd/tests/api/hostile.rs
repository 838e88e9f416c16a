// SPDX-License-Identifier: Apache-2.0
//! Damaged requests: whatever a client sends, envd answers or closes the connection, and serves the next one.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::Command,
    time::Duration,
};

use proptest::{prop_assert, test_runner::TestRunner};
use wrenn_testkit::fuzz;

use crate::client::{Envd, alive, resident};

const REQUESTS: &[&str] = &[
    "GET /health HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /files?path=%2Fetc%2Fhostname&user=root HTTP/1.1\r\nhost: a\r\nrange: bytes=1-2,4-\r\naccept-encoding: gzip;q=0.5\r\n\r\n",
    "POST /files?path=/tmp/a&mode=0644 HTTP/1.1\r\nhost: a\r\ncontent-type: application/octet-stream\r\nx-metadata-a: b\r\n\
     content-length: 3\r\n\r\nabc",
    "POST /files HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=B\r\ntransfer-encoding: chunked\r\n\r\n\
     53\r\n--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"/tmp/b\"\r\n\r\nabc\r\n--B--\r\n\r\n0\r\n\r\n",
    "POST /files/archive?path=/tmp/c HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-tar\r\ncontent-length: 8\r\n\r\n\0\0\0\0\0\0\0\0",
    "POST /files/compose HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n\
     {\"source_paths\":[\"/tmp/a\"],\"destination\":\"/tmp/d\"}",
    "POST /init HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 39\r\n\r\n\
     {\"envVars\":{\"A\":\"b\"},\"hostname\":\"other\"}",
    "POST /connect?port=9 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\nabc",
    "POST /process.Process/List HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    "POST /process.Process/Start HTTP/1.1\r\nhost: a\r\ncontent-type: application/connect+json\r\nconnect-protocol-version: 1\r\n\
     connect-timeout-ms: 1000\r\nauthorization: Basic bm9ib2R5Og==\r\ncontent-length: 51\r\n\r\n\
     \0\0\0\0\x2e{\"process\":{\"cmd\":\"true\",\"args\":[]},\"tag\":\"t\"}  ",
    "POST /process.Process/Connect HTTP/1.1\r\nhost: a\r\ncontent-type: application/connect+proto\r\nconnect-protocol-version: 1\r\n\
     content-length: 11\r\n\r\n\0\0\0\0\x06\x0a\x04\x12\x02ab",
    "POST /filesystem.Filesystem/ListDir HTTP/1.1\r\nhost: a\r\ncontent-type: application/proto\r\ncontent-length: 8\r\n\r\n\
     \x0a\x04/tmp\x10\x01",
    "POST /filesystem.Filesystem/CreateWatcher HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 31\r\n\r\n\
     {\"path\":\"/tmp\",\"recursive\":true}",
    "OPTIONS /files HTTP/1.1\r\nhost: a\r\norigin: http://b\r\naccess-control-request-method: PUT\r\n\r\n",
];
/// Time for which an answer is waited for: a damaged request may ask for one that does not end.
const ANSWER: Duration = Duration::from_millis(300);
/// Maximum resident memory of envd afterwards, in KiB.
const RESIDENT: u64 = 64 << 10;

/// Starts envd without rights, in directories of its own: what it takes for a path or a program may be any.
fn start() -> Envd {
    // The program may be in one of these directories itself.
    let script = "mount -t tmpfs none /run; cp \"$0\" /run/envd
        for dir in /tmp /var/tmp /dev/shm; do mount -t tmpfs none $dir; done
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all /run/envd --port 0";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-ec", script, env!("CARGO_BIN_EXE_envd")]);
    Envd::spawn(command)
}

#[test]
fn whatever_is_sent_the_next_request_is_answered() {
    let envd = start();
    assert_eq!(envd.http("GET", "/health", &[], b"").0, 204);
    let mut runner = TestRunner::new(fuzz::config());
    let outcome = runner.run(&fuzz::damaged(REQUESTS), |request| {
        let mut stream = TcpStream::connect(&envd.address).expect("envd listens");
        stream.set_read_timeout(Some(ANSWER)).expect("a time limit");
        // It may close the connection before all was sent, and answer as long as it likes.
        let _ = stream.write_all(&request);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.take(1 << 20).read_to_end(&mut Vec::new());
        prop_assert!(alive(&envd.child.id().to_string()), "envd ended");
        Ok(())
    });
    outcome.expect("envd goes on");
    assert_eq!(envd.http("GET", "/health", &[], b"").0, 204);
    let resident = resident(&envd);
    assert!(resident < RESIDENT, "envd has {resident} KiB");
}
