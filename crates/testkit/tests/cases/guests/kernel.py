# SPDX-License-Identifier: Apache-2.0
"""Uses what docs/guests.md says that a guest's kernel has. Run by root; prints a line for each part that works."""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import tempfile

LIBC = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


def sh(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    return done.stdout


def mount(kind: str, target: str, data: str = "") -> None:
    result = LIBC.mount(kind.encode(), target.encode(), kind.encode(), 0, data.encode())
    assert result == 0, f"mount of {kind}: {os.strerror(ctypes.get_errno())}"


def overlay() -> None:
    sh("mkdir lower upper work merged; echo a > lower/file")
    mount("overlay", "merged", "lowerdir=lower,upperdir=upper,workdir=work")
    sh("echo b > merged/file; grep -q a lower/file; grep -q b upper/file; umount merged")


def loop() -> None:
    sh("truncate -s 16M disk; mkfs.ext4 -q disk; mkdir image; mount -o loop disk image; touch image/file; umount image")


def fuse() -> None:
    os.mkdir("fuse")
    # Any user may open it; the mount is for root, or for those with a program such as fusermount3.
    sh("sudo -u wrenn-user sh -c ': <> /dev/fuse'")
    device = os.open("/dev/fuse", os.O_RDWR)
    mount("fuse", "fuse", f"fd={device},rootmode=40000,user_id=0,group_id=0")
    size, operation = struct.unpack("=II", os.read(device, 1 << 20)[:8])
    assert size >= 56 and operation == 26, (size, operation)  # FUSE_INIT
    assert LIBC.umount2(b"fuse", MNT_DETACH) == 0
    os.close(device)


def tun() -> None:
    with open("/dev/net/tun", "r+b", buffering=0) as device:
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tun7", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
        sh("ip addr add 10.77.0.1/24 dev tun7; ip link set tun7 up; sudo -u wrenn-user sh -c ': <> /dev/net/tun'")
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sendto(b"through the tunnel", ("10.77.0.2", 9))
        while b"through the tunnel" not in os.read(device.fileno(), 2048):
            pass


def container_network() -> None:
    sh("""
    ip link add br7 type bridge
    ip netns add other
    ip link add veth7 type veth peer name eth0 netns other
    ip link set veth7 master br7
    ip addr add 10.78.0.1/24 dev br7
    for link in br7 veth7; do ip link set $link up; done
    ip -n other addr add 10.78.0.2/24 dev eth0
    ip -n other link set eth0 up
    ip netns exec other ping -c 1 -W 20 10.78.0.1
    ip netns del other
    ip link del br7
    """)


def links_and_rules() -> None:
    sh("""
    for kind in dummy wireguard; do ip link add link7 type $kind; ip link del link7; done
    ip link add link7 link eth0 type macvlan mode bridge; ip link del link7
    ip rule add fwmark 7 table 77; ip rule del fwmark 7
    ip -6 rule add fwmark 7 table 77; ip -6 rule del fwmark 7
    ping -c 1 ::1
    """)


def message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, socket.htons(10)) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags | 1, 0, 0) + body


def attribute(kind: int, content: bytes) -> bytes:
    padding = b"\0" * (-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + content + padding


def nftables() -> None:
    """Adds a table with a chain of NAT, as nft(8) does."""
    table, chain = attribute(1, b"seven\0"), attribute(3, b"post\0")
    hook = attribute(4 | 0x8000, attribute(1, struct.pack(">I", 4)) + attribute(2, struct.pack(">i", 100)))
    kinds = 10 << 8
    batch = [
        message(16, 0, 0, b""),  # NFNL_MSG_BATCH_BEGIN
        message(kinds | 0, 0x400 | 4, 2, table),  # NFT_MSG_NEWTABLE of the family ip
        message(kinds | 3, 0x400 | 4, 2, table + chain + hook + attribute(7, b"nat\0")),
        message(kinds | 2, 4, 2, table),  # NFT_MSG_DELTABLE
        message(17, 0, 0, b""),  # NFNL_MSG_BATCH_END
    ]
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    link.settimeout(20)
    link.sendto(b"".join(batch), (0, 0))
    for _ in range(3):
        _, kind, _, _, _, error = struct.unpack("=IHHIIi", link.recv(4096)[:20])
        assert (kind, error) == (2, 0), (kind, os.strerror(-error))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chdir(directory)
        for part in (overlay, loop, fuse, tun, container_network, links_and_rules, nftables):
            part()
            print(part.__name__, flush=True)
