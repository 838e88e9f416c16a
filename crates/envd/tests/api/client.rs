// SPDX-License-Identifier: Apache-2.0
//! Client of envd over plain HTTP and Connect with JSON, like sandbox clients.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Maximum message size, because hosts reject larger messages of a stream.
const MESSAGE: usize = 64 << 10;

/// Running envd; dropping this kills it.
pub(crate) struct Envd {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Envd {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts envd with options for its limits.
    pub(crate) fn start_with(bounds: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envd"));
        command.args(["--port", "0"]).args(bounds);
        Self::spawn(command)
    }

    /// Starts envd with a command that execs it.
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_prepared(command, |_| "127.0.0.1")
    }

    /// As `spawn`; `prepare` does what the command waits for, and returns the address of envd.
    pub(crate) fn spawn_prepared(
        mut command: Command,
        prepare: impl FnOnce(&mut Child) -> &'static str,
    ) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let host = prepare(&mut child);
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().to_owned();
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address: format!("{host}:{port}") }
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = self.start_sending(method, path, headers, body.len());
        stream.write_all(body).unwrap();
        stream
    }

    /// Sends the head of a request.
    pub(crate) fn start_sending(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        length: usize,
    ) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// Sends one HTTP request; returns its whole response.
    pub(crate) fn answer(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut all = Vec::new();
        self.send(method, path, headers, body).read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|end| end == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let (mut body, chunked) =
            (all.split_off(end + 4), head.to_lowercase().contains("transfer-encoding: chunked"));
        if chunked {
            let mut reader = BufReader::new(&body[..]);
            body = std::iter::from_fn(|| chunk(&mut reader)).flatten().collect();
        }
        Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body }
    }

    /// Sends one HTTP request; returns status and body.
    pub(crate) fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Vec<u8>) {
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

    pub(crate) fn unary(&self, method: &str, body: &Value) -> (u16, Value) {
        let headers = [("content-type", "application/json")];
        let (status, body) = self.http("POST", &format!("/{method}"), &headers, body.to_string().as_bytes());
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub(crate) fn stream(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        self.stream_of(&format!("process.Process/{method}"), headers, body)
    }

    /// Sends several messages as one stream.
    pub(crate) fn messages(&self, method: &str, bodies: &[Value]) -> Events {
        self.streams(&format!("process.Process/{method}"), &[], bodies)
    }

    /// Calls a method of any service that answers with a stream.
    pub(crate) fn stream_of(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        self.streams(method, headers, std::slice::from_ref(body))
    }

    fn streams(&self, method: &str, headers: &[(&str, &str)], bodies: &[Value]) -> Events {
        let mut messages = Vec::new();
        for body in bodies.iter().map(Value::to_string) {
            messages.push(0);
            messages.extend((body.len() as u32).to_be_bytes());
            messages.extend(body.as_bytes());
        }
        let mut all = vec![("content-type", "application/connect+json"), ("connect-protocol-version", "1")];
        all.extend(headers);
        let mut reader = BufReader::new(self.send("POST", &format!("/{method}"), &all, &messages));
        assert_eq!(head(&mut reader).0, 200);
        Events { reader, buffer: Vec::new() }
    }

    pub(crate) fn sh(&self, script: &str) -> Events {
        self.stream("Start", &[], &json!({"process": {"cmd": "sh", "args": ["-c", script]}, "stdin": false}))
    }
}

/// A response of HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Returns the value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
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

/// Messages of a stream.
pub(crate) struct Events {
    pub(crate) reader: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

/// Collected events of a process.
#[derive(Default, Debug)]
pub(crate) struct Run {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    pub(crate) end: Value,
    pub(crate) error: Value,
    /// Lost bytes with the number of output bytes before them.
    pub(crate) lost: Vec<(u64, usize)>,
}

impl Events {
    /// Returns the next message: flag and content.
    pub(crate) fn next(&mut self) -> (u8, Value) {
        loop {
            if self.buffer.len() >= 5 {
                let size = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                assert!(size <= MESSAGE, "a message of {size} bytes");
                if self.buffer.len() >= 5 + size {
                    let message: Vec<u8> = self.buffer.drain(..5 + size).collect();
                    return (message[0], serde_json::from_slice(&message[5..]).unwrap());
                }
            }
            self.buffer.extend(chunk(&mut self.reader).expect("the stream ended without its last message"));
        }
    }

    pub(crate) fn pid(&mut self) -> u64 {
        self.start()["pid"].as_u64().expect("it has a process id")
    }

    /// Returns the first event.
    pub(crate) fn start(&mut self) -> Value {
        let message = self.next().1;
        assert!(message["event"]["start"].is_object(), "the first event is `start`: {message}");
        message["event"]["start"].clone()
    }

    /// Returns the next output of any kind.
    pub(crate) fn data(&mut self) -> Vec<u8> {
        let message = self.next().1;
        let data = message["event"]["data"].as_object().unwrap_or_else(|| panic!("no output: {message}"));
        STANDARD.decode(data.values().next().unwrap().as_str().unwrap()).unwrap()
    }

    pub(crate) fn finish(mut self) -> Run {
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
            if let Some(bytes) = event["lost"]["bytes"].as_str() {
                run.lost.push((bytes.parse().unwrap(), run.stdout.len()));
            }
            if event["end"].is_object() {
                run.end = event["end"].clone();
            }
        }
    }
}

pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Resident memory in KiB.
pub(crate) fn resident(envd: &Envd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", envd.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
