# SPDX-License-Identifier: Apache-2.0
"""Uses the published `e2b` SDK as it is against the envd of a sandbox: commands, terminals, files, watches, signed URLs.

Its requests go through the proxy. They name the sandbox by headers, as with E2B_SANDBOX_URL; those to signed URLs name it
by their host. That platform's control plane is not there: the sandbox comes from Wrenn's own API, and envd's token, which
the answer to a create would have, from the agent's journal in WRENN_STATE_DIR, since no operation of Wrenn's tells it.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import e2b
import httpx
from e2b import AsyncSandbox, CommandExitException, FileType, PtySize, Sandbox
from e2b.sandbox.main import SandboxOpts
from e2b.sandbox_sync.commands.command_handle import CommandHandle
from packaging.version import Version
from published import ODD, raises, wait
from wrenn import Capsule

KILLED = (-1, "signal: killed")


def address(url: str, key: str, id: str) -> str:
    """Returns the host and port of the proxy that lead to envd."""
    path = f"{url}/v1/sandboxes/{id}/ports/{e2b.ConnectionConfig.envd_port}"
    return urlsplit(httpx.get(path, headers={"X-API-Key": key}).raise_for_status().json()["url"]).netloc


def token(id: str) -> str:
    journal = Path(os.environ["WRENN_STATE_DIR"], "agent/sandboxes", id, "journal.json")
    entries = map(json.loads, journal.read_text().splitlines())
    return next(entry["access_token"] for entry in entries if entry.get("step") == "spec")


def options(id: str, host: str, token: str) -> SandboxOpts:
    """Returns what the SDK makes of the answer to a create."""
    port = str(e2b.ConnectionConfig.envd_port)
    headers = {"E2b-Sandbox-Id": id, "E2b-Sandbox-Port": port, "X-Access-Token": token}
    proxy = f"http://127.0.0.1:{host.rpartition(':')[2]}"
    return SandboxOpts(
        sandbox_id=id,
        sandbox_domain=None,
        # With this one the SDK uses all that it knows.
        envd_version=Version("0.6.13"),
        envd_access_token=token,
        traffic_access_token=None,
        connection_config=e2b.ConnectionConfig(sandbox_url=proxy, extra_sandbox_headers=headers),
    )


def ended(handle: CommandHandle) -> tuple[int, str | None]:
    failed = raises(CommandExitException, handle.wait)
    return failed.exit_code, failed.error


def commands(sandbox: Sandbox) -> None:
    run = sandbox.commands.run
    seen: list[str] = []
    given = {"envs": {"WHAT": ODD}, "cwd": "/tmp", "user": "root", "on_stdout": seen.append}
    ran = run("echo $WHAT; pwd; id -un; echo aside >&2", **given)
    assert (ran.stdout, ran.stderr, ran.exit_code) == (f"{ODD}\n/tmp\nroot\n", "aside\n", 0), ran
    assert "".join(seen) == ran.stdout, seen
    # Its input is empty.
    assert run("id -un; pwd; cat").stdout == "wrenn-user\n/home/wrenn-user\n"
    failed = raises(CommandExitException, lambda: run("echo out; echo aside >&2; exit 7"))
    told = (failed.stdout, failed.stderr, failed.exit_code, failed.error)
    assert told == ("out\n", "aside\n", 7, "exit status 7"), told
    raises(e2b.InvalidArgumentException, lambda: run("true", cwd="/no/such/directory"))
    raises(e2b.AuthenticationException, lambda: run("true", user="nobody-here"))
    raises(e2b.TimeoutException, lambda: run("exec sleep 60", timeout=2))
    wait("the command is killed", lambda: not sandbox.commands.list(), 10)


def background(sandbox: Sandbox) -> None:
    commands = sandbox.commands
    fed = commands.run("cat", background=True, stdin=True)
    fed.send_stdin(f"{ODD}\n")
    commands.stream_input(fed.pid, ["two\n", b"three\n"])
    fed.close_stdin()
    assert fed.wait().stdout == f"{ODD}\ntwo\nthree\n"

    script = "while read line; do echo got $line; done"
    left = commands.run(script, background=True, stdin=True, envs={"WHAT": ODD}, cwd="/tmp", timeout=0)
    [listed] = [one for one in commands.list() if one.pid == left.pid]
    told = (listed.cmd, listed.args, listed.envs, listed.cwd)
    assert told == ("/bin/bash", ["-l", "-c", script], {"WHAT": ODD}, "/tmp"), listed
    left.disconnect()
    handle = commands.connect(left.pid)
    handle.send_stdin("one\n")
    assert "got one\n" in (stdout for stdout, _, _ in handle)
    assert handle.kill() and ended(handle) == KILLED
    wait("the command is gone", lambda: not commands.kill(left.pid), 10)
    raises(e2b.NotFoundException, lambda: commands.send_stdin(left.pid, "late"))


def until(terminal: CommandHandle, text: str) -> str:
    output = b""
    for _, _, piece in terminal:
        output += piece or b""
        if text.encode() in output:
            return output.decode()
    raise AssertionError(f"{text!r} did not come, but {output!r}")


def terminals(sandbox: Sandbox) -> None:
    pty = sandbox.pty
    left = pty.create(PtySize(rows=30, cols=100), user="root", cwd="/tmp", envs={"WHAT": ODD}, timeout=0)
    pty.send_stdin(left.pid, b"stty size; pwd; id -un; echo $TERM $WHAT; echo en''d\n")
    output = until(left, "end\r\n")
    assert f"30 100\r\n/tmp\r\nroot\r\nxterm-256color {ODD}\r\n" in output, output
    left.disconnect()
    pty.resize(left.pid, PtySize(rows=43, cols=132))
    terminal = pty.connect(left.pid)
    pty.stream_input(left.pid, [b"stty ", b"size\n"])
    until(terminal, "43 132\r\n")
    pty.send_stdin(left.pid, b"exit 6\n")
    assert ended(terminal)[0] == 6
    other = pty.create(PtySize(rows=30, cols=100))
    assert other.kill() and ended(other) == KILLED
    wait("the terminal is gone", lambda: not pty.kill(other.pid), 10)


def files(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/tmp/files/a/text", ODD, metadata={"Kind": "odd"})
    assert files.read("/tmp/files/a/text") == ODD
    content = os.urandom(3 << 20)
    files.write("/tmp/files/plain", content)
    files.write("/tmp/files/zipped", content, gzip=True)
    pieces = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
    files.write("/tmp/files/pieces", pieces, user="root")
    for name in ("plain", "zipped", "pieces"):
        assert files.read(f"/tmp/files/{name}", format="bytes", gzip=name == "zipped") == content, name
    assert b"".join(files.read("/tmp/files/plain", format="stream")) == content
    files.write_files([{"path": f"/tmp/files/b/{name}", "data": name} for name in ("one", "two")])
    entries = {entry.path.removeprefix("/tmp/files/"): entry for entry in files.list("/tmp/files", depth=2)}
    assert sorted(entries) == ["a", "a/text", "b", "b/one", "b/two", "pieces", "plain", "zipped"], entries
    assert entries["a"].type == FileType.DIR and entries["a/text"] == files.get_info("/tmp/files/a/text")

    text, owned = entries["a/text"], entries["pieces"]
    told = (text.name, text.type, text.size, text.mode, text.permissions, text.owner, text.metadata)
    size = len(ODD.encode())
    assert told == ("text", FileType.FILE, size, 0o644, "-rw-r--r--", "wrenn-user", {"kind": "odd"}), text
    assert (owned.owner, owned.size) == ("root", len(content)), owned
    sandbox.commands.run("ln -s a/text /tmp/files/link")
    link = files.get_info("/tmp/files/link")
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, text.path), link
    assert files.rename(text.path, "/tmp/files/moved").path == "/tmp/files/moved"
    assert files.exists("/tmp/files/moved") and not files.exists(text.path)
    assert files.make_dir("/tmp/files/made/deep") and not files.make_dir("/tmp/files/made/deep")
    files.remove("/tmp/files/made")
    assert not files.exists("/tmp/files/made")
    for missing in (files.read, files.list, files.get_info, lambda path: files.rename(path, "/tmp/other")):
        raises(e2b.FileNotFoundException, lambda: missing("/tmp/none"))
    raises(e2b.InvalidArgumentException, lambda: files.list("/tmp/files/plain"))


def is_new(event: e2b.FilesystemEvent) -> bool:
    told = (event.name, event.type, event.entry and event.entry.path)
    return told == ("new/file", e2b.FilesystemEventType.CREATE, "/tmp/watched/new/file")


def watches(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("/tmp/watched/new")
    watch = sandbox.files.watch_dir("/tmp/watched", recursive=True, include_entry=True)
    sandbox.files.write("/tmp/watched/new/file", "")
    wait("the event", lambda: any(map(is_new, watch.get_new_events())), 10)
    watch.stop()
    sandbox.files.remove("/tmp/watched/new/file")
    raises(e2b.FileNotFoundException, lambda: sandbox.files.watch_dir("/tmp/none"))


def signed_urls(sandbox: Sandbox, host: str) -> None:
    at, path = {"Host": host}, f"/tmp/signed {ODD}"
    upload = sandbox.upload_url(path, user="root", use_signature_expiration=60)
    httpx.post(upload, headers=at, files={"file": b"signed"}).raise_for_status()
    assert sandbox.files.get_info(path).owner == "root"
    assert httpx.get(sandbox.download_url(path), headers=at).raise_for_status().content == b"signed"
    late = httpx.get(sandbox.download_url(path, use_signature_expiration=-60), headers=at)
    assert late.json() == {"code": 401, "message": "signature is already expired"}, late.text
    assert httpx.get(upload, headers=at).status_code == 401


async def streams(opts: SandboxOpts) -> None:
    """Uses the asynchronous SDK, whose watches are streams and whose input stays open."""
    sandbox = AsyncSandbox(**opts)
    fed = await sandbox.commands.run("cat", background=True, stdin=True)
    async with sandbox.commands.stream_input(fed.pid) as stdin:
        await stdin.send(ODD)
    await fed.close_stdin()
    assert (await fed.wait()).stdout == ODD
    seen = asyncio.Event()

    def note(event: e2b.FilesystemEvent) -> None:
        if is_new(event):
            seen.set()

    watch = await sandbox.files.watch_dir("/tmp/watched", note, recursive=True, include_entry=True)
    await sandbox.files.write("/tmp/watched/new/file", "")
    await asyncio.wait_for(seen.wait(), 10)
    await watch.stop()


def main(url: str, key: str) -> None:
    os.environ.update(WRENN_API_KEY=key, WRENN_BASE_URL=url)
    with Capsule(template="minimal", vcpus=1, memory_mb=256, wait=True) as capsule:
        id = capsule.capsule_id
        host = address(url, key, id)
        opts = options(id, host, token(id))
        sandbox = Sandbox(**opts)
        for part in (commands, background, terminals, files, watches):
            part(sandbox)
        signed_urls(sandbox, host)
        asyncio.run(streams(opts))
        raises(e2b.AuthenticationException, Sandbox(**options(id, host, "wrong")).commands.list)
        cut = sandbox.commands.run("sleep 1000", background=True, timeout=0)
        assert sandbox.is_running()
    raises(e2b.SandboxNotRunningException, cut.wait)
    assert not sandbox.is_running()


if __name__ == "__main__":
    main(*sys.argv[1:])
