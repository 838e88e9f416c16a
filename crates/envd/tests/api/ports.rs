// SPDX-License-Identifier: Apache-2.0
//! Connections to ports of the guest.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use crate::client::Envd;

const UPGRADE: [(&str, &str); 2] = [("connection", "upgrade"), ("upgrade", "tcp")];

/// Connects to a port; returns the pipe after the head of the response.
fn connect(envd: &Envd, port: u16) -> (u16, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(&envd.address).unwrap();
    let head = "host: sandbox\r\nconnection: upgrade\r\nupgrade: tcp\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(format!("POST /connect?port={port} HTTP/1.1\r\n{head}").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut status = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().unwrap();
        }
        if line == "\r\n" {
            return (status, reader);
        }
    }
}

/// Answers the first connection, when all of it was read, with the number of bytes; returns the port.
fn count(address: &str) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(all.len().to_string().as_bytes()).unwrap();
    });
    port
}

#[test]
fn ports_of_each_loopback_are_reached_and_directions_end_by_themselves() {
    let envd = Envd::start();
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        let (status, mut pipe) = connect(&envd, count(address));
        assert_eq!(status, 101, "{address}");
        pipe.get_mut().write_all(&vec![7; 3_000_000]).unwrap();
        // What comes after the end of what is sent.
        pipe.get_mut().shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        pipe.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "3000000", "{address}");
    }
}

#[test]
fn what_cannot_be_reached_is_told() {
    let envd = Envd::start();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(connect(&envd, free).0, 502);
    let own = envd.address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(connect(&envd, own).0, 403);
    assert_eq!(connect(&envd, 0).0, 403);
    assert_eq!(envd.http("POST", &format!("/connect?port={free}"), &[], b"").0, 426);
    assert_eq!(envd.http("POST", "/connect?port=70000", &UPGRADE, b"").0, 400);
    let token = br#"{"accessToken": "secret"}"#;
    assert_eq!(envd.http("POST", "/init", &[("content-type", "application/json")], token).0, 204);
    assert_eq!(connect(&envd, free).0, 401);
}
