// SPDX-License-Identifier: Apache-2.0
//! Many readers of one process: each gets all of its output, whatever others do, and memory stays bounded.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use serde_json::json;

use crate::client::{Envd, Events, eventually, resident};

const READERS: usize = 1000;
/// Output in bytes: less than is kept of a process, and than the buffers of a connection take.
const OUTPUT: usize = 64 << 10;
const THREADS: usize = 8;
/// Maximum resident memory of envd with all readers, in KiB.
const RESIDENT: u64 = 96 << 10;

fn ip(args: &str) {
    let ran = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(ran.status.success(), "ip {args}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Starts envd in a network of its own: the connections of its host are not counted as the guest's own.
fn start() -> Envd {
    let script = "ip link set lo up; read ready; ip addr add 10.79.0.2/24 dev guest7; ip link set guest7 up
        exec \"$0\" --port 0";
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-ec", script, env!("CARGO_BIN_EXE_envd")]).stdin(Stdio::piped());
    Envd::spawn_prepared(command, |child| {
        let pid = child.id();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        eventually("a network of its own", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other != own)
        });
        ip(&format!("link add host7 type veth peer name guest7 netns {pid}"));
        ip("addr add 10.79.0.1/24 dev host7");
        ip("link set host7 up");
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        "10.79.0.2"
    })
}

/// Attaches a reader to the process with this tag.
fn attach(envd: &Envd, tag: &str) -> Events {
    let mut reader = envd.stream("Connect", &[], &json!({"process": {"tag": tag}}));
    reader.pid();
    reader
}

#[test]
fn a_thousand_readers_of_a_process_lose_nothing() {
    let envd = start();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!(
        "until [ -e {0} ]; do sleep 0.1; done; head -c {OUTPUT} /dev/zero | tr '\\0' x; printf end",
        go.display()
    );
    let process = json!({"process": {"cmd": "sh", "args": ["-c", script]}, "tag": "many", "stdin": false});
    let mut starter = envd.stream("Start", &[], &process);
    starter.pid();
    let readers: Vec<Vec<_>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| (0..READERS / THREADS).map(|_| attach(&envd, "many")).collect()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    std::fs::write(&go, "").unwrap();
    let all = readers.into_iter().chain([vec![starter]]);
    thread::scope(|scope| {
        for own in all {
            scope.spawn(move || {
                for reader in own {
                    let run = reader.finish();
                    assert!(run.lost.is_empty() && run.error.is_null(), "{:?} {}", run.lost, run.error);
                    assert_eq!(
                        (run.stdout.len(), run.end["status"].as_str()),
                        (OUTPUT + 3, Some("exit status 0"))
                    );
                    assert!(run.stdout.ends_with(b"xend"));
                }
            });
        }
    });
    let resident = resident(&envd);
    assert!(resident < RESIDENT, "envd has {resident} KiB");
    ip("link del host7");
}

/// Readers that leave, and readers that are attached and read nothing, take nothing from the others and do not stop the process.
#[test]
fn readers_that_leave_or_rest_take_nothing_from_others() {
    const LONG: usize = 8 << 20;
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script =
        format!("until [ -e {0} ]; do sleep 0.1; done; head -c {LONG} /dev/zero; printf end", go.display());
    let process = json!({"process": {"cmd": "sh", "args": ["-c", script]}, "tag": "long", "stdin": false});
    let mut starter = envd.stream("Start", &[], &process);
    starter.pid();
    let all = |count| (0..count).map(|_| attach(&envd, "long")).collect::<Vec<_>>();
    let (leaving, resting, reading) = (all(10), all(5), all(15));
    std::fs::write(&go, "").unwrap();
    thread::scope(|scope| {
        for mut reader in leaving {
            scope.spawn(move || {
                reader.data();
            });
        }
        for reader in reading.into_iter().chain([starter]) {
            scope.spawn(move || {
                let run = reader.finish();
                assert!(run.lost.is_empty() && run.error.is_null(), "{:?} {}", run.lost, run.error);
                assert_eq!(run.stdout.len(), LONG + 3);
            });
        }
    });
    // They are told what they missed, and get the end.
    for reader in resting {
        let run = reader.finish();
        let lost: u64 = run.lost.iter().map(|(bytes, _)| bytes).sum();
        assert!(lost > 0 && run.stdout.len() as u64 + lost == LONG as u64 + 3, "{lost} bytes are lost");
        assert_eq!(run.end["exited"], true);
    }
}
