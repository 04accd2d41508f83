"""The database of texts: SQLite, one connection, used by one thread at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from gpt2tg.desk.tree import Kind, Node, Place, path_to, shown_text
from gpt2tg.errors import UserError, one_line

# In the header of the file: that it is ours, and the version of its tables.
APPLICATION_ID = 0x67743274
VERSION = 1

# Deleted texts can be restored for so many seconds.
KEPT_DELETED = 30 * 24 * 3600

# The beginning of a text that lists show has at most so many characters.
OPENING = 80

TABLES = """
CREATE TABLE texts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    deleted REAL,
    current INTEGER,
    settings TEXT NOT NULL DEFAULT '{}',
    words INTEGER NOT NULL DEFAULT 0,
    opening TEXT NOT NULL DEFAULT ''
);
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    text_id INTEGER NOT NULL REFERENCES texts ON DELETE CASCADE,
    parent INTEGER REFERENCES nodes ON DELETE CASCADE,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    name TEXT,
    created REAL NOT NULL,
    settings TEXT,
    finish_reason TEXT,
    is_pruned INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0,
    ids TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX nodes_of_text ON nodes (text_id);
CREATE INDEX nodes_of_parent ON nodes (parent);
CREATE TABLE tokens (
    node INTEGER NOT NULL REFERENCES nodes ON DELETE CASCADE,
    part INTEGER NOT NULL,
    tokens TEXT NOT NULL,
    PRIMARY KEY (node, part)
) WITHOUT ROWID;
"""


class MissingError(LookupError):
    """A text or a node that does not exist."""


@dataclass(frozen=True)
class TextEntry:
    """A text in the list of texts."""

    id: int
    title: str
    opening: str
    """The beginning of its shown text, in one line."""
    created: float
    changed: float
    words: int


@dataclass(frozen=True)
class StoredText:
    """A text without its nodes."""

    entry: TextEntry
    current: int
    """The node that is shown."""
    settings: Mapping[str, Any]
    """The decoding settings that were chosen for it."""


def usual_file() -> Path:
    """Return the file of texts in the user's data folder."""
    return user_data_path("gpt2tg", appauthor=False) / "texts.db"


def open_store(path: Path) -> Store:
    """Open the database, or create it for this user alone. It is locked until it is closed or the process ends.

    Texts that were being generated when the process before was killed become `interrupted`.

    Raises:
        UserError: the file is not ours, newer, damaged, in use, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with path.open("r+b"):  # SQLite would open a file that it may not write
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path} cannot be used: {reason}. Name another file", "texts_file") from None
    connection = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        if "locked" in str(error):
            message = f"{path} is in use by another server: end that one, or name another file"
        elif "unable to open" in str(error) or "readonly" in str(error):
            message = f"{path} cannot be used: SQLite has to write files beside it. Name a file in another folder"
        else:
            message = f"{path} holds no texts, or is damaged ({one_line(error)}): restore a copy, or name another file"
        raise UserError(message, "texts_file") from None
    except UserError:
        connection.close()
        raise
    return Store(connection)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA foreign_keys = ON")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise UserError(f"{path} is a database of another program: name another file", "texts_file")
    if version > VERSION:
        raise UserError(
            f"{path} was written by a newer version of gpt2tg (format {version}, this one knows {VERSION}): update "
            "gpt2tg, or name another file",
            "texts_file",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not tables:
        header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        connection.executescript(f"BEGIN IMMEDIATE; {header} {TABLES} COMMIT;")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "UPDATE nodes SET finish_reason = 'interrupted' WHERE kind = 'generated' AND finish_reason IS NULL"
    )
    connection.execute("DELETE FROM texts WHERE deleted < ?", (time.time() - KEPT_DELETED,))
    connection.execute("COMMIT")


class Store:
    """The tables of texts and nodes. Each method is one step; `transaction` joins several."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def close(self) -> None:
        """Close the database, and give up its lock."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Save all steps of the block, or none of them."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # after some errors, such as a full disk, SQLite has undone it already
                self._db.execute("ROLLBACK")
            raise

    def entries(self) -> list[TextEntry]:
        """Return all texts that are not deleted, the one changed last first."""
        rows = self._db.execute(f"SELECT {_ENTRY} FROM texts WHERE deleted IS NULL ORDER BY changed DESC, id DESC")
        return [TextEntry(*row) for row in rows]

    def text(self, text: int) -> StoredText:
        """Return a text.

        Raises:
            MissingError: there is none, or it is deleted.
        """
        query = f"SELECT current, settings, {_ENTRY} FROM texts WHERE id = ? AND deleted IS NULL"
        row = self._db.execute(query, (text,)).fetchone()
        if row is None:
            raise MissingError(f"there is no text {text}")
        return StoredText(TextEntry(*row[2:]), row[0], json.loads(row[1]))

    def add_text(self, title: str, settings: Mapping[str, Any]) -> int:
        """Add a text that has no node yet, and return its number."""
        now = time.time()
        query = "INSERT INTO texts (title, created, changed, settings) VALUES (?, ?, ?, ?)"
        return _new_id(self._db.execute(query, (title, now, now, json.dumps(settings))))

    def change_text(self, text: int, **columns: Any) -> None:
        """Change columns of a text: title, settings, deleted or current."""
        if "settings" in columns:
            columns["settings"] = json.dumps(columns["settings"])
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(f"UPDATE texts SET {names} WHERE id = ?", (*columns.values(), text))

    def exists(self, text: int) -> bool:
        """Whether there is a text that is not deleted."""
        query = "SELECT 1 FROM texts WHERE id = ? AND deleted IS NULL"
        return self._db.execute(query, (text,)).fetchone() is not None

    def note_change(self, text: int) -> None:
        """Note that a text has changed now, with the words and the beginning of its current node."""
        shown = shown_text(self.path(self.text(text).current))
        columns = {"changed": time.time(), "words": len(shown.split())}
        self.change_text(text, **columns, opening=" ".join(shown[: 4 * OPENING].split())[:OPENING])

    def nodes(self, text: int) -> dict[int, Node]:
        """Return the nodes of a text by their number, without their tokens."""
        rows = self._db.execute(f"SELECT {_NODE} FROM nodes WHERE text_id = ? ORDER BY id", (text,))
        return {row[0]: _node(row) for row in rows}

    def node_count(self, text: int) -> int:
        """Return the number of nodes of a text."""
        (count,) = self._db.execute("SELECT count(*) FROM nodes WHERE text_id = ?", (text,)).fetchone()
        return int(count)

    def path(self, node: int) -> list[Node]:
        """Return the nodes from the root to a node, without their tokens."""
        query = f"""
            WITH RECURSIVE path (node, parent_of) AS (
                SELECT id, parent FROM nodes WHERE id = ?
                UNION ALL SELECT id, parent FROM nodes JOIN path ON id = parent_of
            ) SELECT {_NODE} FROM nodes JOIN path ON id = node"""
        return path_to({row[0]: _node(row) for row in self._db.execute(query, (node,))}, node)

    def path_in(self, text: int, node: int) -> list[Node]:
        """Return the path to a node of a text.

        Raises:
            MissingError: the text has no such node.
        """
        self.text(text)
        row = self._db.execute("SELECT 1 FROM nodes WHERE id = ? AND text_id = ?", (node, text)).fetchone()
        if row is None:
            raise MissingError(f"there is no node {node} in text {text}")
        return self.path(node)

    def children(self, node: int) -> list[Node]:
        """Return the nodes that hang at a node, without their tokens."""
        rows = self._db.execute(f"SELECT {_NODE} FROM nodes WHERE parent = ? ORDER BY id", (node,))
        return [_node(row) for row in rows]

    def add_node(
        self, text: int, place: Place | None, kind: Kind, content: str, settings: Mapping[str, Any] | None = None
    ) -> int:
        """Add a node, and return its number.

        Args:
            place: where it hangs; None for the root.
        """
        parent, at = (None, 0) if place is None else (place.node, place.at)
        values = (text, parent, at, kind, content, time.time(), None if settings is None else json.dumps(settings))
        columns = "text_id, parent, at, kind, text, created, settings"
        return _new_id(self._db.execute(f"INSERT INTO nodes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    def change_node(self, node: int, **columns: Any) -> None:
        """Change columns of a node: text, version, name, is_pruned, finish_reason, ids, created."""
        if "ids" in columns:
            columns["ids"] = json.dumps(list(columns["ids"]))
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(f"UPDATE nodes SET {names} WHERE id = ?", (*columns.values(), node))

    def grow(self, node: int, piece: str) -> None:
        """Add a piece to the text of a node."""
        self._db.execute("UPDATE nodes SET text = text || ? WHERE id = ?", (piece, node))

    def add_tokens(self, node: int, tokens: Sequence[Mapping[str, Any]]) -> None:
        """Add tokens to a node, after those that it has."""
        (part,) = self._db.execute("SELECT count(*) FROM tokens WHERE node = ?", (node,)).fetchone()
        content = json.dumps(tokens, ensure_ascii=False, separators=(",", ":"))
        self._db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (node, part, content))

    def tokens(self, node: int) -> list[dict[str, Any]] | None:
        """Return the tokens of a node; None if they are unknown."""
        rows = self._db.execute("SELECT tokens FROM tokens WHERE node = ? ORDER BY part", (node,)).fetchall()
        return [token for row in rows for token in json.loads(row[0])] if rows else None

    def nodes_with_tokens(self, text: int) -> set[int]:
        """Return the nodes of a text whose tokens are known."""
        query = "SELECT DISTINCT node FROM tokens JOIN nodes ON node = nodes.id WHERE text_id = ?"
        return {row[0] for row in self._db.execute(query, (text,))}


_ENTRY = "id, title, opening, created, changed, words"
_NODE = "id, parent, at, kind, text, name, created, settings, finish_reason, is_pruned, version, ids"


def _new_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _node(row: Sequence[Any]) -> Node:
    number, parent, at, kind, text, name, created, settings, finish_reason, is_pruned, version, ids = row
    known = None if settings is None else json.loads(settings)
    tokens = tuple(json.loads(ids))
    return Node(number, parent, at, kind, text, name, created, known, finish_reason, bool(is_pruned), version, tokens)
