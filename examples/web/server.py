# SPDX-License-Identifier: Apache-2.0
"""Server on port 8000 that tells what the recipe has given to it."""

import getpass
import http.server
import os


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = f"{os.environ['MESSAGE']} {os.getcwd()} {getpass.getuser()} {os.getpid()}"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(told.encode())


http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
