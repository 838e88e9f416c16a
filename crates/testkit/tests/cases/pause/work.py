# SPDX-License-Identifier: Apache-2.0
"""Work that writes to the disk all the time, in the working directory, until there is a file STOP.

work.py prepare          makes what the others need
work.py tar|git|churn    unpacks an archive, again and again | commits to a repository and packs it | creates,
                         renames, syncs and deletes files; writes the number of its rounds to NAME.rounds
work.py check            fails unless all have ended well and left what they had to
"""

import hashlib
import os
import subprocess
import sys
import tarfile

STOP = "/run/stop"
WORKS = ("tar", "git", "churn")
COMMITS = 8


def run(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def sums(top):
    found = {}
    for parent, _, files in os.walk(top):
        for name in files:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.sha256(file.read()).hexdigest()
    return found


def prepare():
    for number in range(400):
        os.makedirs(f"source/{number % 9}", exist_ok=True)
        with open(f"source/{number % 9}/{number}", "wb") as file:
            file.write(os.urandom(1 + number * 37))
    with tarfile.open("archive.tar", "w") as archive:
        archive.add("source")
    run("git", "init", "-q", "repository")


def tar(number):
    """Unpacks beside what the round before has unpacked."""
    here, former = f"unpacked.{number % 2}", f"unpacked.{(number + 1) % 2}"
    os.makedirs(here)
    run("tar", "xf", "archive.tar", "-C", here)
    run("rm", "-rf", former)


def commit(number):
    """A commit in the format of `git fast-import`, after the one before."""
    content = f"content of commit {number}\n" * 50
    after = "from refs/heads/main^0\n" if number > 0 and number % COMMITS == 0 else ""
    return (
        f"commit refs/heads/main\ncommitter Some One <one@example.com> {1_700_000_000 + number} +0000\n"
        f"data 6\nchange\n{after}M 100644 inline file{number % 20}\ndata {len(content)}\n{content}\n"
    )


def git(number):
    first = (number - 1) * COMMITS
    text = "".join(commit(first + index) for index in range(COMMITS))
    run("git", "-C", "repository", "fast-import", "--quiet", text=text)
    run("git", "-C", "repository", "gc", "--quiet", "--prune=now")


def churn(number):
    os.makedirs("churn", exist_ok=True)
    directory = os.open("churn", os.O_RDONLY)
    for index in range(20):
        with open("churn/new", "wb") as file:
            file.write(f"{index} ".encode() * (100 + index * 50))
            file.flush()
            os.fsync(file.fileno())
        os.rename("churn/new", f"churn/{index}")
        if index % 4 == 3:
            os.unlink(f"churn/{index - 2}")
        os.fsync(directory)
    os.close(directory)


def note(name, text):
    with open(f"{name}.new", "w") as file:
        file.write(text)
    os.rename(f"{name}.new", name)


def work(name):
    number = 0
    try:
        while not os.path.exists(STOP):
            number += 1
            {"tar": tar, "git": git, "churn": churn}[name](number)
            note(f"{name}.rounds", str(number))
        note(f"{name}.ended", "well")
    except BaseException as error:
        note(f"{name}.ended", repr(error))
        raise


def rounds(name):
    with open(f"{name}.rounds") as file:
        return int(file.read())


def check():
    for name in WORKS:
        with open(f"{name}.ended") as file:
            ended = file.read()
        assert ended == "well", f"{name} has ended by {ended}"
    expected = sums("source")
    found = sums(f"unpacked.{rounds('tar') % 2}/source")
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    assert not wrong and len(found) == len(expected) == 400, f"not as in the archive: {wrong}"
    run("git", "-C", "repository", "fsck", "--full", "--strict")
    commits = int(run("git", "-C", "repository", "rev-list", "--count", "main"))
    assert commits == rounds("git") * COMMITS, f"{commits} commits after {rounds('git')} rounds"
    left = sorted(int(name) for name in os.listdir("churn"))
    assert left == [index for index in range(20) if index % 4 != 1], f"files {left} are left"
    for index in left:
        with open(f"churn/{index}", "rb") as file:
            assert file.read() == f"{index} ".encode() * (100 + index * 50), f"file {index}"


if sys.argv[1] == "prepare":
    prepare()
elif sys.argv[1] == "check":
    check()
else:
    work(sys.argv[1])
