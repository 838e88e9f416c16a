# SPDX-License-Identifier: Apache-2.0
"""Writer of a SQLite database with a write-ahead log, and its check.

database.py make FILE    makes the database
database.py write FILE   inserts numbered rows, several in each transaction, and deletes the oldest, until it is ended
database.py check FILE   prints the number of the last row; fails unless the database is sound and has the last rows, each as
                         it was written
"""

import hashlib
import sqlite3
import sys
import time

ROWS = 5
KEPT = 1000


def row(number):
    return number, hashlib.sha256(str(number).encode()).digest() * 30


def make(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE log (number INTEGER PRIMARY KEY, content BLOB NOT NULL)")
    db.commit()


def write(path):
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",), "no write-ahead log"
    db.execute("PRAGMA synchronous = FULL")
    # So that the log is copied into the database all the time.
    db.execute("PRAGMA wal_autocheckpoint = 20")
    (last,) = db.execute("SELECT coalesce(max(number), 0) FROM log").fetchone()
    while True:
        db.execute("BEGIN IMMEDIATE")
        for number in range(last + 1, last + 1 + ROWS):
            db.execute("INSERT INTO log VALUES (?, ?)", row(number))
        db.execute("DELETE FROM log WHERE number <= ?", (last + ROWS - KEPT,))
        db.execute("COMMIT")
        last += ROWS
        # The processor is needed by others, too.
        time.sleep(0.03)


def check(path):
    db = sqlite3.connect(path, timeout=60)
    verdict = db.execute("PRAGMA integrity_check").fetchall()
    assert verdict == [("ok",)], verdict
    rows = db.execute("SELECT number, content FROM log ORDER BY number").fetchall()
    last = rows[-1][0] if rows else 0
    expected = range(max(1, last - KEPT + 1), last + 1)
    assert [number for number, _ in rows] == list(expected), f"not the rows {expected}"
    assert last % ROWS == 0, f"half a transaction: the last row is {last}"
    damaged = [number for number, content in rows if (number, content) != row(number)]
    assert not damaged, f"rows {damaged} are damaged"
    print(last)


{"make": make, "write": write, "check": check}[sys.argv[1]](sys.argv[2])
