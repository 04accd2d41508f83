"""The database of texts: who may read it, which files are refused, and what remains of a process that was killed."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpt2tg.desk.desk import Desk
from gpt2tg.desk.store import APPLICATION_ID, KEPT_DELETED, VERSION, MissingError, open_store
from gpt2tg.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "texts.db"


@pytest.fixture
def desk(file: Path) -> Iterator[Desk]:
    with closing(open_store(file)) as store:
        yield Desk(store)


def reopened(desk: Desk, file: Path) -> Desk:
    desk.store.close()
    return Desk(open_store(file))


def test_new_file_is_for_the_user_alone(desk: Desk, file: Path) -> None:
    desk.new_text("A title", "Some text")
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_everything_is_there_when_the_file_is_opened_again(desk: Desk, file: Path) -> None:
    text = desk.new_text("A title", "Once", {"temperature": 0.5})
    root = desk.view(text).text.current
    (node,) = desk.begin(text, root, [{"seed": 3, "model": "tiny"}])
    desk.grow({node: (" upon", [{"text": " upon", "id": 5}])})
    desk.grow({node: (" a\0\N{GRINNING FACE}", [{"text": " a\0\N{GRINNING FACE}", "id": 6}])})
    desk.finish(text, {node: ("length", [5, 6])})
    desk.change_node(text, node, name="The first")
    before = desk.view(text)
    after = reopened(desk, file).view(text)
    assert after == before
    found = after.nodes[1]
    assert (found.text, found.name, found.ids) == (" upon a\0\N{GRINNING FACE}", "The first", (5, 6))
    assert [token["id"] for token in found.tokens or ()] == [5, 6]
    assert after.text.entry.opening == "Once upon a\0\N{GRINNING FACE}"


def test_text_that_was_being_generated_is_interrupted_after_a_crash(desk: Desk, file: Path) -> None:
    text = desk.new_text("", "Once")
    (node,) = desk.begin(text, desk.view(text).text.current, [{}])
    desk.grow({node: (" upon", [])})
    assert desk.view(text).nodes[1].is_growing
    found = reopened(desk, file).view(text).nodes[1]
    assert (found.text, found.finish_reason) == (" upon", "interrupted")


def test_tables_are_plain_sqlite(desk: Desk, file: Path) -> None:
    text = desk.new_text("A title", "Once upon a time")
    desk.store.close()
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT title, words, opening FROM texts").fetchall() == [
            ("A title", 4, "Once upon a time")
        ]
        assert other.execute("SELECT text_id, kind, text FROM nodes").fetchall() == [
            (text, "typed", "Once upon a time")
        ]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_second_server_is_refused_in_one_line(desk: Desk, file: Path) -> None:
    desk.new_text("", "Mine")
    with pytest.raises(UserError, match=r"texts_file .* is in use by another server"):
        open_store(file)
    assert [entry.opening for entry in desk.store.entries()] == ["Mine"]


def test_files_of_others_are_refused_and_stay(tmp_path: Path) -> None:
    newer, foreign, text, damaged = (tmp_path / name for name in ("newer", "foreign", "text", "damaged"))
    with closing(open_store(newer)) as store, closing(sqlite3.connect(foreign)) as other:
        Desk(store).new_text("", "Once")
        other.executescript("CREATE TABLE notes (note TEXT)")
    damaged.write_bytes(b"".join(newer.read_bytes()[start : start + 4096] if start != 8192 else b"\xff" * 4096
                                 for start in range(0, newer.stat().st_size, 4096)))  # fmt: skip
    with closing(sqlite3.connect(newer)) as other:
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    text.write_text("Dear diary, this is no database.\n" * 50)
    for path, message in (
        (newer, "newer version of gpt2tg"),
        (foreign, "another program"),
        (text, "holds no texts, or is damaged"),
        (damaged, "damaged"),
        (tmp_path, "is a directory"),
        (text / "texts.db", "cannot be used"),
    ):
        content = path.read_bytes() if path.is_file() else None
        with pytest.raises(UserError, match=message) as caught:
            open_store(path)
        assert caught.value.option == "texts_file"
        assert "\n" not in str(caught.value)
        assert content is None or path.read_bytes() == content


def test_deleted_text_can_be_restored_for_a_while(desk: Desk, file: Path) -> None:
    text, other = desk.new_text("", "Mine"), desk.new_text("", "Other")
    desk.delete(text)
    desk.delete(other)
    with pytest.raises(MissingError):
        desk.view(text)
    assert desk.store.entries() == []
    desk.restore(text)
    assert desk.view(text).nodes[0].text == "Mine"
    desk.store.change_text(other, deleted=1.0)
    desk = reopened(desk, file)
    with pytest.raises(MissingError):
        desk.restore(other)
    assert KEPT_DELETED > 24 * 3600
    assert APPLICATION_ID


def test_failed_step_leaves_nothing_behind(desk: Desk) -> None:
    text = desk.new_text("", "Once")
    with pytest.raises(MissingError):
        desk.begin(text, 99, [{}])
    with pytest.raises(UserError, match="pruned"):
        desk.change_node(text, desk.view(text).text.current, is_pruned=True)
    other = desk.new_text("", "Other")
    with pytest.raises(MissingError, match="no node"):
        desk.edit(text, desk.view(other).text.current, "Changed")
    assert [node.text for node in desk.view(text).nodes] == ["Once"]


def test_edits_and_prunings_move_the_shown_node(desk: Desk) -> None:
    text = desk.new_text("", "Once upon a time")
    root = desk.view(text).text.current
    desk.edit(text, root, "Once upon a time there")
    (node,) = desk.begin(text, root, [{}])
    assert desk.view(text).text.current == node
    grown = desk.edit(text, root, "Once upon a hill there")  # something hangs at it now
    branch = grown.current
    assert branch not in (root, node)
    assert desk.prompt(text, branch) == "Once upon a hill there"
    assert desk.prompt(text, root) == "Once upon a time there"
    assert desk.change_node(text, branch, is_pruned=True).current == root
    assert desk.change_node(text, branch, is_pruned=False).nodes[0].is_pruned is False


def test_edit_of_an_old_version_makes_a_branch(desk: Desk) -> None:
    """Two tabs show the same text: the second one does not overwrite what the first one has changed."""
    text = desk.new_text("", "Once")
    root = desk.view(text).text.current
    first = desk.edit(text, root, "Once upon", version=0)
    second = desk.edit(text, root, "Once more", version=0)
    assert (first.is_branched, second.is_branched) == (False, True)
    assert desk.prompt(text, first.current) == "Once upon"
    assert desk.prompt(text, second.current) == "Once more"


def test_end_of_text_can_be_chosen_and_a_part_of_a_character_cannot(desk: Desk) -> None:
    text = desk.new_text("", "Once")
    (node,) = desk.begin(text, desk.view(text).text.current, [{}])
    likely = [
        {"id": 0, "text": "<|endoftext|>", "probability": 0.5, "is_special": True},
        {"id": 7, "text": "\N{REPLACEMENT CHARACTER}", "probability": 0.25},
        {"id": 5, "text": " upon", "probability": 0.1},
    ]
    token = {"id": 5, "text": " upon", "logprob": -2.3, "rank": 3, "entropy": None, "alternatives": likely}
    desk.grow({node: (" upon", [token])})
    desk.finish(text, {node: ("length", [5])})
    (ended,) = desk.choose(text, node, 0, 0).nodes
    assert (ended.text, ended.finish_reason, ended.at, desk.prompt(text, ended.id)) == ("", "eos", 0, "Once")
    with pytest.raises(UserError, match="part of a character"):
        desk.choose(text, node, 0, 1)
    (same,) = desk.choose(text, node, 0, 2).nodes
    assert same.tokens == [{**token, "logprob": -2.30259}]


def test_full_disk_loses_one_step_and_saving_goes_on_when_there_is_space(desk: Desk) -> None:
    text = desk.new_text("", "Once")
    node = desk.view(text).text.current
    (pages,) = desk.store._db.execute("PRAGMA page_count").fetchone()
    desk.store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        desk.edit(text, node, "Once" + "x" * 100_000)
    assert desk.prompt(text, node) == "Once"
    desk.edit(text, node, "Once upon")
    assert desk.prompt(text, node) == "Once upon"


def test_folder_that_cannot_be_written_is_not_called_damage(desk: Desk, file: Path) -> None:
    desk.store.close()
    file.with_name(f"{file.name}-wal").mkdir()  # so that it cannot be opened, by root either
    with pytest.raises(UserError, match="cannot be used: SQLite has to write files beside it"):
        open_store(file)
