# SPDX-License-Identifier: Apache-2.0
"""Network attacks of a guest and what another guest receives, and what a guest finds: `attack`, `watch`, `report` or `resolve`.

Uses only modules of the minimal Python. Prints one line per answer or received frame.
"""

import errno
import os
import select
import socket
import struct
import sys
import time

GUEST, GATEWAY = "169.254.0.21", "169.254.0.22"
GUEST_MAC, GATEWAY_MAC = bytes.fromhex("02fc00000005"), bytes.fromhex("02fc00000016")
BROADCAST_MAC = b"\xff" * 6
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ECHO, DNS = 7, 53
PATIENCE = 60
LINK = next(name for name in sorted(os.listdir("/sys/class/net")) if name.startswith("e"))


def tap():
    """Opens a socket that receives every frame on the link."""
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sniffer.bind((LINK, 3))
    sniffer.setblocking(False)
    return sniffer


def drain(sniffer):
    while True:
        try:
            frame, address = sniffer.recvfrom(65536)
        except BlockingIOError:
            return
        if address[2] != 4:  # our own
            yield frame


def strange(frame):
    """Returns why a received frame is suspicious, or None for frames of the gateway and the agent."""
    source, kind = frame[6:12], struct.unpack("!H", frame[12:14])[0]
    if source != GATEWAY_MAC:
        return "frame of %s, type %#x" % (source.hex(), kind)
    if b"hostile" in frame:
        return "hostile frame of type %#x" % kind
    if kind not in (ARP, IPV4):
        return "frame of type %#x" % kind
    if kind == ARP and frame[28:32] != socket.inet_aton(GATEWAY):
        return "ARP about %s" % socket.inet_ntoa(frame[28:32])
    return None


# Attempts through the kernel's network stack.


def knock(address, port, poll, sockets):
    stream = socket.socket()
    stream.setblocking(False)
    if stream.connect_ex((address, port)) == errno.EINPROGRESS:
        poll.register(stream, select.EPOLLOUT)
        sockets[stream.fileno()] = ("tcp", address, port, stream)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    datagram.setblocking(False)
    try:
        datagram.connect((address, port))
        datagram.send(b"hello")
    except OSError:
        return  # the guest itself refuses: nothing was sent
    poll.register(datagram, select.EPOLLIN)
    sockets[datagram.fileno()] = ("udp", address, port, datagram)


def outcome(kind, peer):
    failure = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        return errno.errorcode[failure]
    return "open" if kind == "tcp" else repr(peer.recv(100).decode())


def scan(addresses, ports, fence):
    """Connects everywhere at once; counts as silent what has not answered 2 s after the internet did."""
    poll, sockets = select.epoll(), {}
    knocks = [(address, port) for address in addresses for port in ports]
    for address, port in knocks:
        knock(address, port, poll, sockets)
    end, fenced = time.monotonic() + PATIENCE, False
    while time.monotonic() < end:
        for number, _ in poll.poll(0.1):
            kind, address, port, peer = sockets[number]
            poll.unregister(peer)
            result = outcome(kind, peer)
            print("answer", kind, address, port, result)
            if (kind, address) == ("tcp", fence) and not fenced:
                fenced, end = True, time.monotonic() + 2
    print("knocked", len(knocks))


# Attempts with handmade frames.


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(kind, payload, source=GUEST_MAC, to=GATEWAY_MAC):
    return to + source + struct.pack("!H", kind) + payload


def ipv4(source, to, protocol, payload, options=b"", fragment=0, hops=64):
    words = 5 + len(options) // 4
    length = words * 4 + len(payload)
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, 7, fragment, hops, protocol, 0) + ends + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(text, port=ECHO):
    return struct.pack("!HHHH", 1000, port, 8 + len(text), 0) + text


def syn(source, to, port):
    head = struct.pack("!HHIIBBHHH", 2000, port, 1, 0, 0x50, 2, 1024, 0, 0)
    false = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack("!HH", 6, len(head))
    return head[:16] + struct.pack("!H", checksum(false + head)) + head[18:]


def ping():
    body = struct.pack("!HH", 7, 7) + b"hostile!"
    return struct.pack("!BBH", 8, 0, checksum(struct.pack("!BBH", 8, 0, 0) + body)) + body


def arp(operation, sender, asked, mac=GUEST_MAC):
    ends = mac + socket.inet_aton(sender) + BROADCAST_MAC + socket.inet_aton(asked)
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + ends


def ipv6(payload):
    source = socket.inet_pton(socket.AF_INET6, "2001:db8::66")
    to = socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    return struct.pack("!IHBB", 6 << 28, len(payload), 17, 64) + source + to + payload


def frames(forbidden, internet, forged):
    # Own address, forbidden destination; also around the guest's own routes.
    for to in forbidden:
        for protocol, payload in [(17, udp(b"hostile")), (6, syn(GUEST, to, 80)), (1, ping())]:
            for mac in (GATEWAY_MAC, BROADCAST_MAC, bytes.fromhex("01005e000001")):
                yield ether(IPV4, ipv4(GUEST, to, protocol, payload), to=mac)
        # In two fragments, and with a TTL that makes each router report itself.
        whole = udp(b"hostile pieces")
        for fragment, piece in [(0x2000, whole[:16]), (2, whole[16:])]:
            yield ether(IPV4, ipv4(GUEST, to, 17, piece, fragment=fragment))
        yield ether(IPV4, ipv4(GUEST, to, 17, udp(b"hostile hops"), hops=2))
    # Forged source addresses.
    for source in forged:
        for to in forbidden + [internet]:
            yield ether(IPV4, ipv4(source, to, 17, udp(b"hostile forged")))
            yield ether(IPV4, ipv4(source, to, 6, syn(source, to, 80)))
    fine = ipv4(GUEST, internet, 17, udp(b"hostile shape"))
    for mac in (GATEWAY_MAC, bytes.fromhex("02fc00000006"), bytes.fromhex("020000000001")):
        yield ether(IPV4, fine, source=mac)
    for first, then in [(internet, forbidden[0]), (GATEWAY, internet)]:
        route = bytes([131, 7, 4]) + socket.inet_aton(then) + b"\0"
        yield ether(IPV4, ipv4(GUEST, first, 17, udp(b"hostile route"), route))
    # False ARP announcements, and ARP requests for other addresses.
    for claimed in [GATEWAY, internet] + forged:
        for operation in (1, 2):
            yield ether(ARP, arp(operation, claimed, GATEWAY), to=BROADCAST_MAC)
            yield ether(ARP, arp(operation, claimed, claimed), to=BROADCAST_MAC)
    for asked in forbidden + [internet]:
        if asked != GATEWAY:
            yield ether(ARP, arp(1, GUEST, asked), to=BROADCAST_MAC)
    yield ether(ARP, arp(2, GUEST, GATEWAY, mac=bytes.fromhex("020000000009")))
    # Other protocols than IPv4.
    for mac in (GATEWAY_MAC, BROADCAST_MAC, bytes.fromhex("333300000001")):
        yield ether(IPV6, ipv6(udp(b"hostile six")), to=mac)
    for tag in (0x8100, 0x88A8):
        for vlan in (0, 5):
            inner = struct.pack("!HH", vlan, IPV4) + fine
            yield ether(tag, inner)
            yield ether(tag, struct.pack("!HH", vlan, 0x8100) + inner)
    for kind in (0x88CC, 0x8863, 0x8864, 0x888E, 0x8847, 0x9000):
        yield ether(kind, b"hostile" * 8, to=BROADCAST_MAC)


def converse(address, port, text):
    """Sends a datagram and prints the answer."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.settimeout(PATIENCE)
    peer.sendto(text.encode(), (address, port))
    answer, sender = peer.recvfrom(100)
    print("conversed", sender[0], sender[1], answer.decode())


def attack(internet, forbidden, forged, ports):
    forbidden, forged = forbidden.split(","), forged.split(",")
    sniffer = tap()
    scan(forbidden + [internet], [int(port) for port in ports.split(",")], internet)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind((LINK, 0))
    count = 0
    for frame in frames(forbidden, internet, forged):
        raw.send(frame.ljust(60, b"\0"))
        count += 1
    print("frames", count)
    # After all frames sent before, and through connections that are still open.
    converse(internet, ECHO, "fence")
    for line in open("/etc/resolv.conf"):
        if line.startswith("nameserver"):
            converse(line.split()[1], DNS, "name")
    for frame in drain(sniffer):
        if strange(frame):
            print("heard", strange(frame))


def watch(ports):
    """Prints received frames until /tmp/stop exists."""
    sniffer, listeners = tap(), {}
    for port in ports.split(","):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = socket.socket(socket.AF_INET, kind)
            listener.bind(("0.0.0.0", int(port)))
            if kind == socket.SOCK_STREAM:
                listener.listen()
            listeners[listener] = "%s to port %s" % (kind, port)
    open("/tmp/ready", "w").write("ready")
    count, sources = 0, set()
    while True:
        stop = os.path.exists("/tmp/stop")
        for ready in select.select([sniffer, *listeners], [], [], 0.2)[0]:
            if ready is not sniffer:
                print("heard", listeners.pop(ready))
        for frame in drain(sniffer):
            count += 1
            if strange(frame):
                print("heard", strange(frame))
            elif frame[12:14] == b"\x08\x00":
                sources.add(socket.inet_ntoa(frame[26:30]))
        if stop:
            break
    print("watched", count)
    for source in sorted(sources):
        print("source", source)


def report(internet, port, name):
    """Connects from a port that every guest uses, sends its name and prints the answer."""
    peer = socket.socket()
    peer.settimeout(PATIENCE)
    peer.bind((GUEST, 5555))
    peer.connect((internet, int(port)))
    peer.sendall(name.encode())
    print(peer.recv(100).decode())


def resolve(name):
    """Prints how often a resolver may be asked, and the addresses of two names: of both families, and of IPv6 alone."""
    for line in open("/etc/resolv.conf"):
        for word in line.split():
            if word.startswith("attempts:"):
                print("attempts", word.partition(":")[2])
    for first, family in ("both", socket.AF_UNSPEC), ("six", socket.AF_INET6):
        begin = time.monotonic()
        found = socket.getaddrinfo(first + "." + name, None, family, socket.SOCK_STREAM)
        print(first, *sorted({address[0] for *_, address in found}))
        print("took %.1f s" % (time.monotonic() - begin))


{"attack": attack, "watch": watch, "report": report, "resolve": resolve}[sys.argv[1]](*sys.argv[2:])
