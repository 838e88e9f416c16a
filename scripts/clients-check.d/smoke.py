# SPDX-License-Identifier: Apache-2.0
"""Uses the generated Python client against a running Wrenn: create, run, write, read, list, delete; build, cancel."""

import hashlib
import os
import sys
import tarfile
import uuid
from io import BytesIO
from typing import TypeVar

from wrenn_client import AuthenticatedClient
from wrenn_client.api.builds import cancel_build, create_build, list_builds
from wrenn_client.api.commands import exec_command
from wrenn_client.api.files import (
    copy_file,
    read_archive,
    read_content,
    read_file,
    write_archive,
    write_content,
    write_file,
)
from wrenn_client.api.ports import get_port
from wrenn_client.api.sandboxes import create_sandbox, delete_sandbox, get_sandbox, list_sandboxes
from wrenn_client.api.templates import list_templates
from wrenn_client.models import (
    Build,
    BuildUpload,
    CopyFile,
    CreateBuild,
    CreateSandbox,
    CreateSandboxEnvs,
    ErrorBody,
    ExecRequest,
    ExecResponse,
    OneEntry,
    PortAddress,
    ReadFile,
    RegistryAccount,
    Sandbox,
    SandboxStatus,
    Upload,
    WrittenArchive,
    WrittenFile,
)
from wrenn_client.types import File

T = TypeVar("T")


def ok(answer: T | ErrorBody | None) -> T:
    """The data of a response, or its error as an exception."""
    if isinstance(answer, ErrorBody):
        raise AssertionError(f"{answer.error.code}: {answer.error.message}")
    assert answer is not None
    return answer


def use(client: AuthenticatedClient, sandbox: Sandbox) -> None:
    command = ExecRequest(cmd="sh", args=["-c", "echo $GREETING; exit 3"])
    ran = ok(exec_command.sync(sandbox.id, client=client, body=command))
    assert isinstance(ran, ExecResponse)
    assert (ran.stdout, ran.exit_code) == ("hello\n", 3), ran

    content = os.urandom(3 << 20)
    upload = Upload(path="dir/content", file=File(payload=BytesIO(content)))
    written = write_file.sync_detailed(sandbox.id, client=client, body=upload)
    assert written.status_code == 204, written.content
    read = ok(read_file.sync(sandbox.id, client=client, body=ReadFile(path="dir/content")))
    assert read.payload.read() == content

    put = ok(write_content.sync(sandbox.id, client=client, body=File(payload=BytesIO(content)), path="dir/raw", mode="0640"))
    assert isinstance(put, WrittenFile) and put.sha256 == hashlib.sha256(content).hexdigest(), put
    raw = ok(read_content.sync(sandbox.id, client=client, path="dir/raw"))
    assert raw.payload.read() == content
    copied = ok(copy_file.sync(sandbox.id, client=client, body=CopyFile(source="dir/raw", destination="dir/copy")))
    assert isinstance(copied, OneEntry) and copied.entry.mode == 0o640, copied
    archive = ok(read_archive.sync(sandbox.id, client=client, path="dir"))
    unpacked = ok(write_archive.sync(sandbox.id, client=client, body=archive, path="back"))
    assert isinstance(unpacked, WrittenArchive) and unpacked.entries == 4, unpacked
    port = ok(get_port.sync(sandbox.id, 8000, client=client))
    assert isinstance(port, PortAddress) and port.token and port.token in port.browser_url, port

    missing = read_file.sync(sandbox.id, client=client, body=ReadFile(path="nothing"))
    assert isinstance(missing, ErrorBody) and missing.error.code == "not_found", missing

    listed = ok(list_sandboxes.sync(client=client, limit=100, status=[SandboxStatus.RUNNING]))
    assert sandbox.id in [one.id for one in listed], listed


def build(client: AuthenticatedClient) -> None:
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as files:
        file = tarfile.TarInfo("hello.txt")
        file.size = len(b"hello\n")
        files.addfile(file, BytesIO(b"hello\n"))
    archive.seek(0)
    wanted = CreateBuild(name=f"smoke-{uuid.uuid4().hex[:8]}", recipe="COPY hello.txt /srv/\n", memory_mb=256)
    made = ok(create_build.sync(client=client, body=BuildUpload(config=wanted, archive=File(payload=archive))))
    assert isinstance(made, Build) and (made.name, made.tag) == (wanted.name, "latest"), made
    listed = ok(list_builds.sync(client=client, template=wanted.name))
    assert [one.id for one in listed] == [made.id], listed
    # By now it may have ended.
    cancelled = cancel_build.sync_detailed(made.id, client=client)
    assert cancelled.status_code in (204, 409), cancelled.content
    assert "minimal" in [one.name for one in ok(list_templates.sync(client=client))]


def image(client: AuthenticatedClient) -> None:
    account = RegistryAccount(username="robot", password="a token")
    wanted = CreateSandbox(image="registry.example/none:1", registry=account)
    refused = create_sandbox.sync(client=client, body=wanted)
    # Whether the host asks that registry at all depends on its configuration.
    codes = ("registry_denied", "registry_unavailable", "image_not_found")
    assert isinstance(refused, ErrorBody) and refused.error.code in codes, refused


def main(url: str, key: str) -> None:
    client = AuthenticatedClient(
        base_url=url, token=key, prefix="", auth_header_name="X-API-Key", timeout=None
    )
    envs = CreateSandboxEnvs.from_dict({"GREETING": "hello"})
    wanted = CreateSandbox(template="minimal", vcpus=1, memory_mb=256, disk_size_mb=1024, envs=envs)
    sandbox = ok(create_sandbox.sync(client=client, body=wanted, idempotency_key=str(uuid.uuid4())))
    assert sandbox.status == SandboxStatus.RUNNING, sandbox
    try:
        use(client, sandbox)
    finally:
        deleted = delete_sandbox.sync_detailed(sandbox.id, client=client)
    assert deleted.status_code == 204, deleted.content
    assert get_sandbox.sync_detailed(sandbox.id, client=client).status_code == 404
    image(client)
    build(client)


if __name__ == "__main__":
    main(*sys.argv[1:])
