# SPDX-License-Identifier: Apache-2.0
"""Writer of a SQLite database with a write-ahead log, and its check.

database.py make FILE    makes the database
database.py write FILE   inserts numbered rows, several in each transaction, until it is ended
database.py check FILE   prints the number of rows; fails unless the database is sound and has every row as it was written
"""

import hashlib
import sqlite3
import sys
import time

ROWS = 5


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
        db.execute("COMMIT")
        last += ROWS
        # The processor is needed by others, too.
        time.sleep(0.03)


def check(path):
    db = sqlite3.connect(path, timeout=60)
    verdict = db.execute("PRAGMA integrity_check").fetchall()
    assert verdict == [("ok",)], verdict
    count = 0
    for found in db.execute("SELECT number, content FROM log ORDER BY number"):
        count += 1
        assert found == row(count), f"row {count} is {found}"
    assert count % ROWS == 0, f"half a transaction: {count} rows"
    print(count)


{"make": make, "write": write, "check": check}[sys.argv[1]](sys.argv[2])
