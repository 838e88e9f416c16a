# SPDX-License-Identifier: Apache-2.0
"""Uses the published `wrenn` client as it is against a running Wrenn: every method, each argument by its effect.

Not used: statistics, usage and metrics, which this API does not have yet, and the code runner, whose template it lacks.
"""

import asyncio
import contextlib
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import httpx
from wrenn import AsyncCapsule, Capsule
from wrenn.client import SSEEvent, WrennClient
from wrenn.exceptions import WrennConflictError, WrennNotFoundError
from wrenn.models import Status

ODD = "漢é🤣 \\ \"'"

Raised = TypeVar("Raised", bound=Exception)


def wait(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s")


def raises(error: type[Raised], call: Callable[[], Any]) -> Raised:
    try:
        result = call()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} did not come, but {result!r}")


def commands(capsule: Capsule) -> None:
    ran = capsule.commands.run("echo $WHAT; pwd; echo aside >&2; exit 3", envs={"WHAT": ODD}, cwd="/tmp")
    assert (ran.stdout, ran.stderr, ran.exit_code) == (f"{ODD}\n/tmp\n", "aside\n", 3), ran
    assert capsule.commands.run("printf '\\377'").stdout == "\ufffd"
    assert capsule.commands.run("echo late; sleep 60", timeout=1).exit_code != 0
    raises(Exception, lambda: capsule.commands.run("true", cwd="/no/such/directory"))

    script = "trap '' TERM; echo $WHAT; pwd; echo aside >&2; sleep 1000"
    handle = capsule.commands.run(script, background=True, tag="worker", envs={"WHAT": ODD}, cwd="/tmp")
    assert (handle.tag, handle.capsule_id) == ("worker", capsule.capsule_id) and handle.pid > 1, handle
    [listed] = [one for one in capsule.commands.list() if one.pid == handle.pid]
    assert (listed.tag, listed.cmd, listed.args) == ("worker", "/bin/sh", ["-c", script]), listed
    output = {"stdout": "", "stderr": ""}
    for event in capsule.commands.connect(handle.pid):
        if event.type in output:
            output[event.type] += event.data
        if len(output["stdout"]) > len(ODD) + 4 and output["stderr"]:
            break
    assert output == {"stdout": f"{ODD}\n/tmp\n", "stderr": "aside\n"}, output
    capsule.commands.kill(handle.pid)
    wait("the process is killed", lambda: handle.pid not in [one.pid for one in capsule.commands.list()])
    raises(WrennNotFoundError, lambda: capsule.commands.kill(handle.pid))

    for events in (
        capsule.commands.stream("echo out; echo aside >&2; exit 5"),
        capsule.commands.stream("sh", ["-c", "echo out; echo aside >&2; exit 5"]),
    ):
        seen = [(event.type, getattr(event, "data", None)) for event in events]
        assert seen[0][0] == "start" and seen[-1][0] == "exit", seen
        assert ("stdout", "out\n") in seen and ("stderr", "aside\n") in seen, seen


def files(capsule: Capsule) -> None:
    files = capsule.files
    files.write("/tmp/a/b/text", ODD)
    assert files.read("/tmp/a/b/text") == ODD
    content = os.urandom(3 << 20)
    files.write("/tmp/a/bytes", content)
    assert files.read_bytes("/tmp/a/bytes") == content
    names = {entry.path: entry.type for entry in files.list("/tmp/a", depth=2)}
    assert names == {"/tmp/a/b": "directory", "/tmp/a/b/text": "file", "/tmp/a/bytes": "file"}, names
    assert [entry.size for entry in files.list("/tmp/a") if entry.name == "bytes"] == [len(content)]
    assert files.exists("/tmp/a/bytes") and not files.exists("/tmp/a/none") and not files.exists("/tmp/no/ne")
    made = files.make_dir("/tmp/made/deep")
    assert (made.name, made.type, made.path) == ("deep", "directory", "/tmp/made/deep"), made
    assert files.make_dir("/tmp/made/deep").path == made.path
    files.remove("/tmp/made")
    assert not files.exists("/tmp/made")
    raises(WrennNotFoundError, lambda: files.read("/tmp/none"))
    raises(WrennNotFoundError, lambda: files.remove("/tmp/none"))
    raises(WrennNotFoundError, lambda: files.list("/tmp/none"))

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    files.upload_stream("/tmp/streamed/up", pieces())
    digest = hashlib.sha256()
    for piece in files.download_stream("/tmp/streamed/up"):
        digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    raises(Exception, lambda: list(files.download_stream("/tmp/none")))


def terminals(capsule: Capsule) -> None:
    with capsule.pty(cols=100, rows=30, envs={"WHAT": ODD}, cwd="/tmp") as terminal:
        output = b""
        terminal.write(b"stty size; pwd; echo $WHAT; echo en''d\n")
        for event in terminal:
            if event.type == "output":
                output += event.data
            if b"end\r\n" in output:
                break
        for expected in ("30 100", "/tmp", ODD):
            assert expected in output.decode(), (expected, output)
        tag, pid = terminal.tag, terminal.pid
        assert tag and tag.startswith("pty-") and pid
        terminal.resize(132, 43)
        size = f"stty size < /proc/{pid}/fd/0"
        wait("the new size", lambda: capsule.commands.run(size).stdout == "43 132\n")
        terminal.write(b"KEPT=yes; clear; echo here\n")
    with capsule.pty_connect(tag) as terminal:
        output = b""
        for event in terminal:
            output += event.data if event.type == "output" else b""
            if b"here" in output:
                break
        assert (terminal.tag, terminal.pid) == (tag, pid)
        terminal.write(b"echo $KEPT again; exit 6\n")
        for event in terminal:
            output += event.data if event.type == "output" else b""
        assert event.type == "exit" and event.exit_code == 6, event
        assert b"yes again" in output, output
    with capsule.pty(cmd="/bin/sh", args=["-c", "echo argument; exec sleep 1000"]) as terminal:
        output = b""
        for event in terminal:
            output += event.data if event.type == "output" else b""
            if b"argument" in output:
                break
        terminal.kill()
        assert [event.exit_code for event in terminal if event.type == "exit"] == [137]
    with capsule.pty_connect("pty-none") as terminal:
        assert [event.type for event in terminal if event.type != "ping"] == ["error"]


def git(capsule: Capsule) -> None:
    git = capsule.git
    git.init("/tmp/repo", initial_branch="main")
    at = {"cwd": "/tmp/repo"}
    git.configure_user("A", "a@example.com", **at)
    assert git.get_config("user.email", scope="global", **at) == "a@example.com"
    git.set_config("core.abbrev", "12", **at)
    capsule.files.write("/tmp/repo/file", "one\n")
    assert git.status(**at).has_untracked
    git.add(["file"], **at)
    assert git.status(**at).has_staged
    git.commit("first", author_name="B", author_email="b@example.com", **at)
    assert git.status(**at).is_clean and git.status(**at).branch == "main"
    assert capsule.commands.run("git log -1 --format=%an:%ae:%s", **at).stdout == "B:b@example.com:first\n"
    git.create_branch("topic", **at)
    git.checkout_branch("main", **at)
    assert {branch.name for branch in git.branches(**at)} == {"main", "topic"}
    git.delete_branch("topic", force=True, **at)
    capsule.files.write("/tmp/repo/file", "two\n")
    git.restore(["file"], **at)
    assert capsule.files.read("/tmp/repo/file") == "one\n"
    capsule.files.write("/tmp/repo/file", "three\n")
    git.add(["file"], **at)
    git.reset(paths=["file"], **at)
    assert not git.status(**at).has_staged
    git.reset(mode="hard", ref="HEAD", **at)
    assert git.status(**at).is_clean and capsule.files.read("/tmp/repo/file") == "one\n"
    git.dangerously_authenticate("A", "secret", host="git.example.com", **at)
    assert "A:secret@git.example.com" in capsule.commands.run("cat ~/.git-credentials").stdout
    git.init("/tmp/bare.git", bare=True, initial_branch="main")
    git.remote_add("origin", "/tmp/bare.git", **at)
    assert git.remote_get("origin", **at) == "/tmp/bare.git"
    git.push("origin", "main", **at)
    git.clone("file:///tmp/bare.git", "/tmp/clone", branch="main", depth=1)
    git.pull("origin", "main", cwd="/tmp/clone")
    assert capsule.files.read("/tmp/clone/file") == "one\n"


def lifecycle(capsule: Capsule, client: WrennClient) -> None:
    capsule.ping()
    assert capsule.is_running() and capsule.get_info().memory_mb == 256
    assert capsule.capsule_id in [one.id for one in Capsule.list()]
    capsule.commands.run("echo kept > /tmp/kept")
    snapshot = f"published-{os.getpid()}"
    assert capsule.create_snapshot(snapshot).name == snapshot
    try:
        assert snapshot in [one.name for one in client.snapshots.list(type="snapshot")]
        raises(Exception, lambda: capsule.create_snapshot(snapshot))
        capsule.commands.run("echo second > /tmp/version")
        assert capsule.create_snapshot(snapshot, overwrite=True).name == snapshot
        assert [one.name for one in client.snapshots.list(type="snapshot")].count(snapshot) == 1
        with Capsule(template=snapshot, wait=True) as clone:
            assert clone.files.read("/tmp/kept") == "kept\n" and clone.files.read("/tmp/version") == "second\n"
            assert clone.capsule_id != capsule.capsule_id
    finally:
        client.snapshots.delete(snapshot)
    raises(WrennNotFoundError, lambda: client.snapshots.delete(snapshot))

    assert capsule.pause(wait=True).status == Status.paused
    raises(WrennConflictError, lambda: capsule.commands.run("true"))
    with_connect = Capsule.connect(capsule.capsule_id)
    assert with_connect.files.read("/tmp/kept") == "kept\n"
    assert Capsule.pause(capsule.capsule_id, wait=True).status == Status.paused
    assert Capsule.resume(capsule.capsule_id, wait=True).status == Status.running
    assert capsule.get_url(8000).split("://")[1].startswith(f"8000-{capsule.capsule_id}.")
    capsule.destroy(wait=True)
    assert Capsule.get_info(capsule.capsule_id).status in (Status.stopped, Status.missing)
    raises(WrennNotFoundError, lambda: Capsule.connect("sb03halx8fdhw2fu3txwbd0kdw0"))


async def asynchronous() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"0123456789"

    async with await AsyncCapsule.create(memory_mb=256, wait=True) as capsule:
        assert (await capsule.commands.run("echo out")).stdout == "out\n"
        seen = [event.type async for event in capsule.commands.stream("echo out")]
        assert seen == ["start", "stdout", "exit"], seen
        handle = await capsule.commands.run("sleep 1000", background=True)
        assert handle.pid in [one.pid for one in await capsule.commands.list()]
        await capsule.commands.kill(handle.pid)
        await capsule.files.write("/tmp/text", ODD)
        assert await capsule.files.read("/tmp/text") == ODD
        await capsule.files.upload_stream("/tmp/up", pieces())
        read = b"".join([piece async for piece in capsule.files.download_stream("/tmp/up")])
        assert read == b"0123456789" * 10
        await capsule.git.init("/tmp/repo")
        async with capsule.pty() as terminal:
            await terminal.write(b"exit 4\n")
            assert [event.exit_code async for event in terminal if event.type == "exit"] == [4]


def follow(client: WrennClient, events: "queue.Queue[SSEEvent]") -> None:
    # It ends when the client is closed.
    with contextlib.suppress(httpx.HTTPError):
        for event in client.events.stream():
            events.put(event)


def main(url: str, key: str) -> None:
    os.environ.update(WRENN_API_KEY=key, WRENN_BASE_URL=url)
    with WrennClient() as client:
        events: queue.Queue[SSEEvent] = queue.Queue()
        threading.Thread(target=follow, args=(client, events), daemon=True).start()
        with Capsule(template="minimal", vcpus=1, memory_mb=256, timeout=600, wait=True) as capsule:
            assert capsule.info and capsule.info.timeout_sec == 600, capsule.info
            for part in (commands, files, terminals, git):
                part(capsule)
            lifecycle(capsule, client)
            # The stream begins when it is connected, which may be after the first events.
            seen: list[Status | None] = []
            while Status.stopped not in seen:
                about = events.get(timeout=60).sandbox
                if about and about.id == capsule.capsule_id:
                    seen.append(about.status)
            assert {Status.paused, Status.running} <= set(seen), seen
    asyncio.run(asynchronous())


if __name__ == "__main__":
    main(*sys.argv[1:])
