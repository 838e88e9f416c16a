# SPDX-License-Identifier: Apache-2.0
# A server for the cases of ports: `server.py ADDRESS PORT`.
import base64
import hashlib
import json
import os
import socket
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunks(self):
        if self.headers.get("transfer-encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("content-length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_POST(self):
        sum = hashlib.sha256()
        for chunk in self.chunks():
            sum.update(chunk)
        self.answer(sum.hexdigest().encode())

    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b"data: one\n\n")
            while not os.path.exists("/tmp/go"):
                time.sleep(0.05)
            self.wfile.write(b"data: two\n\n")
            self.close_connection = True
        elif self.path == "/moved":
            self.answer(b"", 302, [("location", "/there?x")])
        elif self.path == "/broken":
            self.close_connection = True
        elif self.headers.get("upgrade") == "websocket":
            self.websocket()
        elif self.headers.get("upgrade") == "count":
            self.switch("count")
            self.wfile.write(str(len(self.rfile.read())).encode())
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            told = {"path": self.path, "headers": headers, "connection": self.client_address[1]}
            self.answer(json.dumps(told).encode())

    def switch(self, protocol, headers=()):
        self.send_response(101)
        for name, value in [("connection", "upgrade"), ("upgrade", protocol), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def websocket(self):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.switch("websocket", [("sec-websocket-accept", accept)])
        while head := self.rfile.read(2):
            mask, data = self.rfile.read(4), self.rfile.read(head[1] & 127)
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
            self.wfile.write(bytes([head[0], len(data)]) + data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
