// SPDX-License-Identifier: Apache-2.0
//! Simulated outside network in a namespace: a server that greets, one that sends data, and resolvers.

use std::{
    net::Ipv4Addr,
    process::{Child, Command},
};

/// Address on the simulated internet.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Port of the server that greets.
pub(crate) const GREETS: u16 = 7777;
/// Port of the server that sends [`MOVED_MB`].
pub(crate) const SENDS: u16 = 7778;
/// Amount of data in MiB for measuring a rate.
pub(crate) const MOVED_MB: u64 = 4;

pub(crate) fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Resolvers of the network in which the snapshot is taken, and of the one in which it is restored. The last
/// byte of their answers is that of their own address.
pub(crate) const RESOLVERS: [Ipv4Addr; 2] = [OUTSIDE, Ipv4Addr::new(203, 0, 113, 10)];
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

/// Servers in the namespace; dropping this removes all.
pub(crate) struct Outside([Child; 3]);

impl Outside {
    pub(crate) fn new() -> Self {
        sh("ip netns add outside
            ip link add outside0 type veth peer name eth0 netns outside
            ip address add 203.0.113.1/24 dev outside0
            ip link set outside0 up
            ip -n outside address add 203.0.113.9/24 dev eth0
            ip -n outside address add 203.0.113.10/24 dev eth0
            ip -n outside link set eth0 up");
        let inside = ["netns", "exec", "outside"];
        let [greets, sends] = [GREETS, SENDS].map(|port| format!("TCP-LISTEN:{port},fork,reuseaddr"));
        let greet = ["socat", &greets, "SYSTEM:echo hello"];
        let send = format!("SYSTEM:head -c {} /dev/zero", MOVED_MB << 20);
        let much = ["socat", &sends, &send];
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
