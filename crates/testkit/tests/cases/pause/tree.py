# SPDX-License-Identifier: Apache-2.0
"""Tree of files with what file systems and copies of them lose first.

tree.py change DIR ROUND   changes the tree: creates, renames, overwrites, cuts and deletes files, and syncs
tree.py sum DIR            prints the number of its entries and a checksum of all that can be seen of them
"""

import hashlib
import os
import stat
import sys

# More would take long to be summed up.
HOLE = 1 << 20


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def sparse(path, end):
    with open(path, "wb") as file:
        file.seek(HOLE)
        file.write(end)
    occupied = os.stat(path).st_blocks * 512
    assert occupied < HOLE, f"{path} has no hole: {occupied} bytes"


def mark(path, value):
    os.setxattr(path, "user.round", value)
    assert os.getxattr(path, "user.round") == value, "no extended attributes"


def change(top, number):
    here, former = f"{top}/{number}", f"{top}/{number - 1}"
    os.makedirs(f"{here}/deep/er")
    for name in ("kept", "renamed", "replacing", "deleted", "cut", "over written"):
        write(f"{here}/{name}", os.urandom(40_000))
    sparse(f"{here}/sparse", os.urandom(5000))
    mark(f"{here}/kept", f"round {number}".encode())
    mark(f"{here}/deep", bytes([number]) * 100)
    os.symlink("kept", f"{here}/link")
    os.link(f"{here}/kept", f"{here}/deep/er/same")
    os.chmod(f"{here}/kept", 0o640)
    if os.path.isdir(former):
        os.rename(f"{former}/renamed", f"{here}/deep/from before")
        os.rename(f"{here}/replacing", f"{former}/kept")
        os.unlink(f"{former}/deleted")
        os.truncate(f"{former}/cut", 1234)
        with open(f"{former}/over written", "r+b") as file:
            file.seek(9000)
            file.write(os.urandom(9000))
        os.removexattr(f"{former}/deep", "user.round")
    os.sync()


def content(path, meta):
    if stat.S_ISLNK(meta.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(meta.st_mode):
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    return ""


def marks(path, meta):
    if stat.S_ISLNK(meta.st_mode):
        return {}
    return {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}


def sum_up(top):
    seen, found = hashlib.sha256(), []
    for parent, dirs, files in os.walk(top):
        found.extend(os.path.join(parent, name) for name in dirs + files)
    for path in sorted(found):
        meta = os.lstat(path)
        length = 0 if stat.S_ISDIR(meta.st_mode) else meta.st_size
        entry = (path, meta.st_mode, meta.st_nlink, length, meta.st_mtime_ns)
        seen.update(repr((entry, content(path, meta), marks(path, meta))).encode())
        if path.endswith("/sparse"):
            assert meta.st_blocks * 512 < HOLE, f"{path} has lost its hole"
    print(len(found), seen.hexdigest())


if sys.argv[1] == "change":
    change(sys.argv[2], int(sys.argv[3]))
else:
    sum_up(sys.argv[2])
