//! Runs the real envd as an ordinary process and speaks to it as sandbox clients do.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

/// A running envd; dropped, it ends.
struct Envd {
    child: Child,
    address: String,
}

impl Envd {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_envd"))
            .args(["--port", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().to_owned();
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address: format!("127.0.0.1:{port}") }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// One plain exchange: status and body.
    fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<u8>) {
        let mut reader = BufReader::new(self.send(method, path, headers, body));
        let (status, chunked) = head(&mut reader);
        let mut body = Vec::new();
        if chunked {
            while let Some(chunk) = chunk(&mut reader) {
                body.extend(chunk);
            }
        } else {
            reader.read_to_end(&mut body).unwrap();
        }
        (status, body)
    }

    fn unary(&self, method: &str, body: &Value) -> (u16, Value) {
        let headers = [("content-type", "application/json")];
        let (status, body) = self.http("POST", &format!("/{method}"), &headers, body.to_string().as_bytes());
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn stream(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        let body = body.to_string();
        let mut message = vec![0];
        message.extend((body.len() as u32).to_be_bytes());
        message.extend(body.as_bytes());
        let mut all = vec![("content-type", "application/connect+json"), ("connect-protocol-version", "1")];
        all.extend(headers);
        let mut reader =
            BufReader::new(self.send("POST", &format!("/process.Process/{method}"), &all, &message));
        assert_eq!(head(&mut reader).0, 200);
        Events { reader, buffer: Vec::new() }
    }

    fn sh(&self, script: &str) -> Events {
        self.stream("Start", &[], &json!({"process": {"cmd": "sh", "args": ["-c", script]}, "stdin": false}))
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn head(reader: &mut impl std::io::BufRead) -> (u16, bool) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut chunked = false;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim() {
            "" => return (status, chunked),
            other => chunked |= other.eq_ignore_ascii_case("transfer-encoding: chunked"),
        }
    }
}

fn chunk(reader: &mut impl std::io::BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let size = usize::from_str_radix(line.trim(), 16).unwrap();
    let mut data = vec![0; size + 2];
    reader.read_exact(&mut data).unwrap();
    data.truncate(size);
    (size > 0).then_some(data)
}

/// The messages of a stream.
struct Events {
    reader: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

/// A whole run.
#[derive(Default, Debug)]
struct Run {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    pty: Vec<u8>,
    end: Value,
    error: Value,
}

impl Events {
    /// The next message: its flag and content.
    fn next(&mut self) -> (u8, Value) {
        loop {
            if self.buffer.len() >= 5 {
                let size = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + size {
                    let message: Vec<u8> = self.buffer.drain(..5 + size).collect();
                    return (message[0], serde_json::from_slice(&message[5..]).unwrap());
                }
            }
            self.buffer.extend(chunk(&mut self.reader).expect("the stream ended without its last message"));
        }
    }

    fn pid(&mut self) -> u64 {
        self.next().1["event"]["start"]["pid"].as_u64().expect("the first event is `start`")
    }

    /// The next output of any kind.
    fn data(&mut self) -> Vec<u8> {
        let message = self.next().1;
        let data = message["event"]["data"].as_object().unwrap_or_else(|| panic!("no output: {message}"));
        STANDARD.decode(data.values().next().unwrap().as_str().unwrap()).unwrap()
    }

    fn finish(mut self) -> Run {
        let mut run = Run::default();
        loop {
            let (flag, message) = self.next();
            if flag & 2 != 0 {
                run.error = message["error"].clone();
                return run;
            }
            let event = &message["event"];
            assert!(run.end.is_null(), "nothing comes after the end: {event}");
            for (name, sink) in
                [("stdout", &mut run.stdout), ("stderr", &mut run.stderr), ("pty", &mut run.pty)]
            {
                if let Some(text) = event["data"][name].as_str() {
                    sink.extend(STANDARD.decode(text).unwrap());
                }
            }
            if event["end"].is_object() {
                run.end = event["end"].clone();
            }
        }
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn output_is_complete_to_the_last_byte() {
    let envd = Envd::start();
    for _ in 0..200 {
        let run =
            envd.sh("head -c 65536 /dev/zero | tr '\\0' x; printf end; printf err >&2; exit 3").finish();
        assert_eq!(run.stdout.len(), 65539);
        assert!(run.stdout.ends_with(b"xend"));
        assert_eq!(run.stderr, b"err");
        assert_eq!((&run.end["exitCode"], &run.end["status"]), (&json!(3), &json!("exit status 3")));
        assert!(run.error.is_null() && run.end["error"].is_null());
    }
}

/// A pipe holds 64 KiB, so each of these has ended before all of its output was read.
#[test]
fn thousands_of_short_commands_lose_no_byte() {
    let envd = Envd::start();
    thread::scope(|scope| {
        for way in 0..4 {
            let envd = &envd;
            scope.spawn(move || {
                for number in (way..6000).step_by(4) {
                    let run = envd.sh(&format!("printf %065536d {number}")).finish();
                    let wanted = format!("{}{number:05}", "0".repeat(65531));
                    let same = run.stdout.iter().zip(wanted.as_bytes()).take_while(|(a, b)| a == b).count();
                    assert_eq!(
                        (same, run.stdout.len()),
                        (65536, 65536),
                        "command {number}: right, all bytes"
                    );
                    assert_eq!(run.end["exitCode"].as_i64().unwrap_or_default(), 0, "{}", run.end);
                }
            });
        }
    });
}

#[test]
fn output_larger_than_the_buffer_is_not_lost_to_a_reading_client() {
    let run = Envd::start().sh("head -c 8000000 /dev/zero").finish();
    assert_eq!(run.stdout.len(), 8_000_000);
}

#[test]
fn input_reaches_the_process_until_it_is_closed() {
    let envd = Envd::start();
    let mut events =
        envd.stream("Start", &[], &json!({"process": {"cmd": "cat"}, "stdin": true, "tag": "t"}));
    events.pid();
    let input = json!({"process": {"tag": "t"}, "input": {"stdin": STANDARD.encode("hello")}});
    assert_eq!(envd.unary("process.Process/SendInput", &input).0, 200);
    assert_eq!(envd.unary("process.Process/List", &json!({})).1["processes"][0]["tag"], "t");
    assert_eq!(envd.unary("process.Process/CloseStdin", &json!({"process": {"tag": "t"}})).0, 200);
    let run = events.finish();
    assert_eq!((run.stdout.as_slice(), &run.end["exited"]), (&b"hello"[..], &json!(true)));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let envd = Envd::start();
    let mut events = envd.sh("sleep 1000 & echo $!; wait");
    let pid = events.pid();
    let child = String::from_utf8(events.data()).unwrap().trim().to_owned();
    assert!(alive(&child));
    let request = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(envd.unary("process.Process/SendSignal", &request).0, 200);
    let run = events.finish();
    assert_eq!((&run.end["exitCode"], &run.end["status"]), (&json!(-1), &json!("signal: killed")));
    eventually("the grandchild is killed", || !alive(&child));
    eventually("an ended process takes no signals", || {
        envd.unary("process.Process/SendSignal", &request).0 == 404
    });
}

#[test]
fn a_deadline_kills_and_says_so_after_the_output() {
    let envd = Envd::start();
    let request =
        json!({"process": {"cmd": "sh", "args": ["-c", "echo so far; sleep 1000"]}, "stdin": false});
    let run = envd.stream("Start", &[("connect-timeout-ms", "3000")], &request).finish();
    assert_eq!(run.stdout, b"so far\n");
    assert_eq!(
        (&run.end["status"], &run.error["code"]),
        (&json!("signal: killed"), &json!("deadline_exceeded"))
    );
}

#[test]
fn a_disconnect_kills_only_when_asked() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": false});
    let mut kept = envd.stream("Start", &[], &request);
    let mut killed = envd.stream("Start", &[("x-wrenn-kill-on-disconnect", "1")], &request);
    let (kept_pid, killed_pid) = (kept.pid().to_string(), killed.pid().to_string());
    for events in [&kept, &killed] {
        events.reader.get_ref().shutdown(Shutdown::Both).unwrap();
    }
    eventually("the process ends with its connection", || !alive(&killed_pid));
    assert!(alive(&kept_pid));
    envd.unary(
        "process.Process/SendSignal",
        &json!({"process": {"pid": kept_pid.parse::<u64>().unwrap()}, "signal": "SIGNAL_SIGTERM"}),
    );
    eventually("it ends when told to", || !alive(&kept_pid));
}

#[test]
fn a_terminal_has_its_size() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sh", "args": ["-c", "stty size; read x; stty size"]},
        "pty": {"size": {"cols": 100, "rows": 30}}});
    let mut events = envd.stream("Start", &[], &request);
    let pid = events.pid();
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        said.extend(events.data());
    }
    assert_eq!(said, b"30 100\r\n");
    let update = json!({"process": {"pid": pid}, "pty": {"size": {"cols": 90, "rows": 20}}});
    assert_eq!(envd.unary("process.Process/Update", &update).0, 200);
    let input = json!({"process": {"pid": pid}, "input": {"pty": STANDARD.encode("\n")}});
    assert_eq!(envd.unary("process.Process/SendInput", &input).0, 200);
    let run = events.finish();
    assert!(String::from_utf8(run.pty).unwrap().contains("20 90\r\n"));
}

#[test]
fn a_hundred_clients_read_the_same_output() {
    let envd = Envd::start();
    let mut first = envd.sh("echo begin; read x < /dev/null; head -c 300000 /dev/zero; echo end");
    let pid = first.pid();
    let whole = first.finish().stdout;
    assert_eq!(whole.len(), 300_010);
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let run = envd.stream("Connect", &[], &json!({"process": {"pid": pid}})).finish();
                assert!(run.stdout == whole && run.end["exited"] == true);
            });
        }
    });
}

#[test]
fn bad_requests_are_told_apart() {
    let envd = Envd::start();
    let code = |headers: &[(&str, &str)], process: Value| {
        let run = envd.stream("Start", headers, &json!({"process": process})).finish();
        (run.error["code"].as_str().unwrap().to_owned(), run.error["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        code(&[], json!({"cmd": "no-such"})),
        ("not_found".into(), "command not found: no-such".into())
    );
    assert_eq!(code(&[], json!({"cmd": "sh", "cwd": "/no/such"})).0, "invalid_argument");
    assert_eq!(code(&[], json!({"cmd": "/etc/passwd"})).0, "permission_denied");
    let who = [("authorization", "Basic bm9ib2R5LWhlcmU6")];
    let expected = ("unauthenticated".into(), "invalid username: 'nobody-here'".into());
    assert_eq!(code(&who, json!({"cmd": "sh"})), expected);
    let call = |method: &str, body: Value| {
        envd.unary(&format!("filesystem.Filesystem/{method}"), &body).1["code"].clone()
    };
    assert_eq!(call("Stat", json!({"path": "a\0b"})), "invalid_argument");
    assert_eq!(call("Stat", json!({"path": "a".repeat(5000)})), "invalid_argument");
    assert_eq!(call("ListDir", json!({"path": "/no/such"})), "not_found");
    assert_eq!(call("ListDir", json!({"path": "/etc/passwd"})), "invalid_argument");
}

#[test]
fn once_set_the_token_is_required_everywhere_but_for_health() {
    let envd = Envd::start();
    assert_eq!(envd.http("POST", "/init", &[], br#"{"accessToken":"secret","envVars":{"A":"b"}}"#).0, 204);
    for (method, path) in [
        ("POST", "/init"),
        ("GET", "/envs"),
        ("GET", "/metrics"),
        ("GET", "/files?path=/etc/passwd"),
        ("POST", "/files?path=/tmp/x"),
        ("POST", "/process.Process/List"),
        ("POST", "/process.Process/Start"),
        ("POST", "/filesystem.Filesystem/Stat"),
        ("GET", "/no-such"),
    ] {
        assert_eq!(envd.http(method, path, &[], b"{}").0, 401, "{method} {path}");
        assert_eq!(envd.http(method, path, &[("x-access-token", "wrong")], b"{}").0, 401, "{method} {path}");
    }
    assert_eq!(envd.http("GET", "/health", &[], b"").0, 204);
    assert_eq!(
        envd.http("GET", "/envs", &[("x-access-token", "secret")], b""),
        (200, br#"{"A":"b"}"#.to_vec())
    );
}

#[test]
fn files_come_back_as_written_and_a_broken_upload_leaves_the_old_one() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new/file");
    let url = format!("/files?atomic=true&path={}", file.display());
    let octets = [("content-type", "application/octet-stream")];
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(envd.http("POST", &url, &octets, &content).0, 200);
    assert!(envd.http("GET", &url, &[], b"").1 == content);
    assert_eq!(envd.http("GET", &url, &[("range", "bytes=10-19")], b""), (206, content[10..20].to_vec()));
    let folder = |path: &Path| format!("/files?path={}", path.display());
    assert_eq!(envd.http("GET", &folder(dir.path()), &[], b"").0, 400);
    assert_eq!(envd.http("GET", "/files?path=/no/such", &[], b"").0, 404);

    let mut stream = TcpStream::connect(&envd.address).unwrap();
    let head = format!("POST {url} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![1; 100_000]).unwrap();
    let entries = || std::fs::read_dir(file.parent().unwrap()).unwrap().count();
    eventually("the upload has begun", || entries() == 2);
    drop(stream);
    eventually("its temporary file is removed", || entries() == 1);
    assert!(std::fs::read(&file).unwrap() == content);
}
