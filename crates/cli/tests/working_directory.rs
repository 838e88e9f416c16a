// SPDX-License-Identifier: Apache-2.0
//! Files in the working directory must not select programs, addresses or databases.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

/// Starts a server that answers each request with an empty list; also returns its requests.
fn listener() -> (String, mpsc::Receiver<String>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for stream in socket.incoming() {
            let _ = sender.send(answer(stream.unwrap()));
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream) -> String {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(size) => request.extend_from_slice(&piece[..size]),
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]");
    String::from_utf8_lossy(&request).to_lowercase()
}

/// Creates a directory like a hostile repository: programs, and a `.env` with their paths, an address and a
/// database.
fn repository(address: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["firecracker", "jailer", "qemu-system-x86_64", "unshare", "redis-server", "getent"] {
        let path = dir.path().join(name);
        // Written by another process: a child of this process would have a copy of the descriptor, and a file
        // open for writing cannot be executed.
        let script =
            format!("printf '#!/bin/sh\necho $0 >> {}/ran\n' > {}", dir.path().display(), path.display());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let firecracker = dir.path().join("firecracker").display().to_string();
    let variables = format!(
        "WRENN_URL=http://{address}\nWRENN_AGENT_FIRECRACKER={firecracker}\nDATABASE_URL=postgres://u@{address}/x\n\
         REDIS_URL=redis://{address}\nWRENN_STATE_DIR={}\nWRENN_FOO=1\n",
        dir.path().display()
    );
    fs::write(dir.path().join(".env"), variables).unwrap();
    dir
}

/// Runs `wrenn` in `dir` as a user with the home directory `home`.
fn wrenn(dir: &Path, home: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let path = format!(".::{}", std::env::var("PATH").unwrap());
    Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .env("HOME", home)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn configure(home: &Path, url: &str) {
    fs::create_dir_all(home.join(".config/wrenn")).unwrap();
    fs::write(home.join(".config/wrenn/config.toml"), format!("url = \"{url}\"\napi_key = \"wrn_secret\"\n"))
        .unwrap();
}

#[test]
fn a_client_asks_the_server_of_its_configuration_and_nobody_else() {
    let ((hostile, stolen), (own, requests)) = (listener(), listener());
    let (dir, home) = (repository(&hostile), tempfile::tempdir().unwrap());
    configure(home.path(), &format!("http://{own}"));
    let listed = wrenn(dir.path(), home.path(), &["--json", "sandbox", "ls"], &[]);
    assert!(listed.status.success(), "{listed:?}");
    // It is told after the client has its answer.
    let request = requests.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(request.contains("x-api-key: wrn_secret"));
    assert!(stolen.try_recv().is_err(), "the address of .env was asked");
}

#[test]
fn doctor_runs_no_program_of_the_working_directory() {
    let (hostile, stolen) = listener();
    let (dir, home) = (repository(&hostile), tempfile::tempdir().unwrap());
    let state = home.path().join("state").display().to_string();
    let variables = [("WRENN_STATE_DIR", state.as_str()), ("WRENN_AGENT_DRIVER", "tcg")];
    let output = wrenn(dir.path(), home.path(), &["--json", "doctor"], &variables);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert!(!report["checks"].as_array().unwrap().is_empty());
    let ran = fs::read_to_string(dir.path().join("ran")).unwrap_or_default();
    assert!(ran.is_empty(), "ran: {ran}");
    assert!(!report.to_string().contains(&dir.path().display().to_string()), "{report:#}");
    assert!(stolen.try_recv().is_err());
}

#[test]
fn a_broken_file_and_foreign_variables_break_no_client() {
    let ((hostile, _stolen), (own, _requests)) = (listener(), listener());
    let (dir, home) = (repository(&hostile), tempfile::tempdir().unwrap());
    configure(home.path(), &format!("http://{own}"));
    fs::write(dir.path().join(".env"), "garbage line\n\"\n").unwrap();
    let listed = wrenn(dir.path(), home.path(), &["--json", "sandbox", "ls"], &[("WRENN_FOO", "1")]);
    assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
    // Services reject unknown variables.
    let refused = wrenn(dir.path(), home.path(), &["migrate"], &[("WRENN_FOO", "1")]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("WRENN_FOO"), "{text}");
    let refused = wrenn(dir.path(), home.path(), &["migrate", "--env-file", ".env"], &[]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("--env-file .env cannot be read"), "{text}");
}

#[test]
fn the_key_of_the_file_goes_to_no_other_address() {
    let ((other, stolen), (own, _requests)) = (listener(), listener());
    let home = tempfile::tempdir().unwrap();
    configure(home.path(), &format!("http://{own}"));
    let url = format!("http://{other}");
    for (arguments, variables) in [
        (vec!["sandbox", "ls", "--url", &url], vec![]),
        (vec!["sandbox", "ls"], vec![("WRENN_URL", url.as_str())]),
    ] {
        let refused = wrenn(home.path(), home.path(), &arguments, &variables);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!([&other, &own].iter().all(|address| text.contains(*address)), "{text}");
        assert!(stolen.try_recv().is_err(), "the key went to {other}");
    }
    // With a key of its own the server is used.
    let variables = [("WRENN_URL", url.as_str()), ("WRENN_API_KEY", "wrn_theirs")];
    let listed = wrenn(home.path(), home.path(), &["sandbox", "ls"], &variables);
    assert!(listed.status.success(), "{listed:?}");
    assert!(stolen.try_recv().unwrap().contains("x-api-key: wrn_theirs"));
}
