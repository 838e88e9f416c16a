# SPDX-License-Identifier: Apache-2.0
"""An SMTP server of tests, which takes a mail only by TLS and only from its account.

Its argument is a JSON object: `port`, `mails` (the directory that gets them), `certificate` and `key` (PEM files), `is_wrapped` (whether TLS
begins with the connection, instead of by STARTTLS), `user`, `password`, and `mechanism` (the only one by which that account signs in).

A mail gets the header X-Came, which has how it came.
"""
import asyncio
import json
import ssl
import sys

from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

given = json.loads(sys.argv[1])


class Mails(Mailbox):
    async def handle_DATA(self, server, session, envelope):
        is_encrypted = server.transport.get_extra_info("sslcontext") is not None
        came = f"X-Came: {'by TLS' if is_encrypted else 'in clear'}, {session.auth_data}\r\n"
        envelope.content = came.encode() + envelope.content
        return await super().handle_DATA(server, session, envelope)


def authenticate(server, session, envelope, mechanism, data):
    account = LoginPassword(given["user"].encode(), given["password"].encode())
    return AuthResult(success=data == account, handled=False, auth_data=mechanism)


def connection():
    return SMTP(
        Mails(given["mails"]),
        tls_context=None if given["is_wrapped"] else context,
        require_starttls=not given["is_wrapped"],
        authenticator=authenticate,
        auth_required=True,
        # Of TLS that began before SMTP the class knows nothing.
        auth_require_tls=not given["is_wrapped"],
        auth_exclude_mechanism={"LOGIN", "PLAIN"} - {given["mechanism"]},
        loop=asyncio.get_running_loop(),
    )


async def serve():
    wrapped = context if given["is_wrapped"] else None
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", given["port"], ssl=wrapped)
    await server.serve_forever()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(given["certificate"], given["key"])
asyncio.run(serve())
