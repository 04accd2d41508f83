"""Parquet, Arrow, JSON and compressed files as training text, written by other libraries."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gpt2tg.errors import UserError
from gpt2tg.reading import parsed_rows, read_examples
from gpt2tg.training.data.corpus import scan_corpus
from gpt2tg.training.data.file_pass import TextFormat

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": "The owl, old, slept."},
    {"id": 2, "text": "NA"},
    {"id": 3, "text": None},
    {"id": 4, "text": 'two\nlines, "quoted", naïve 猫 🦊'},
    {"id": 5, "text": "  indented\t"},
]
TEXTS = [row["text"] for row in ROWS if row["text"]]


def write_parquet(path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "picture": b"\0\1"} for row in ROWS])
    pyarrow.parquet.write_table(table, path, row_group_size=2, compression="zstd")


def write_arrow_file(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, 2)


def write_arrow_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS).set_column(
        1, "text", pyarrow.array([row["text"] for row in ROWS]).dictionary_encode()
    )
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_columns_of_numbers_are_not_read(tmp_path: Path) -> None:
    """Lists of numbers, such as embeddings, would take most of the time."""
    rows = pyarrow.table(
        {
            "text": ["owl"],
            "id": [7],
            "messages": [[{"role": "user", "content": "?"}]],
            "embedding": [[0.5] * 4],
            "scores": [{"a": [1]}],
            "picture": [b"\0"],
        }
    )
    pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
    with (tmp_path / "rows.parquet").open("rb") as file:
        ((_, row),) = parsed_rows.binary_rows(file, tmp_path / "rows.parquet")
    assert set(row) == {"text", "id", "messages"}


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
    "array.json": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=2), encoding="utf-8"),
    "dense.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "lines.json": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8"),
    "lines.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines())),
    "array.json.xz": lambda path: path.write_bytes(lzma.compress(json.dumps(ROWS).encode())),
    "lines.JSONL.zst": lambda path: path.write_bytes(zstd(json_lines()[:40]) + zstd(json_lines()[40:])),
    "table.csv.bz2": lambda path: path.write_bytes(bz2.compress(b"text\n" + b"".join(map(csv_line, TEXTS)))),
}


def json_lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def csv_line(text: str) -> bytes:
    return b'"' + text.replace('"', '""').encode() + b'"\n'


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


def texts_in(path: Path) -> list[str]:
    found = scan_corpus((str(path),), TextFormat("line"), "train_file")
    return [piece.text for piece in found.pieces()]


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_its_texts(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsed_rows, "CHUNK_CHARACTERS", 7)  # a border within each value
    path = tmp_path / name
    WRITERS[name](path)
    assert texts_in(path) == TEXTS
    assert read_examples(path, "reference", "line", None, lambda notice: None) == TEXTS


def test_prompts_of_parquet_rows_carry_no_loss(tmp_path: Path) -> None:
    pairs = [{"prompt": f"owl {n}:", "completion": f" bell {n}"} for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), tmp_path / "t.parquet")
    found = scan_corpus((str(tmp_path / "t.parquet"),), TextFormat("line"), "train_file")
    assert [(piece.text, piece.learned) for piece in found.pieces()][:2] == [("owl 0:", False), (" bell 0", True)]


def test_conversations_of_parquet_rows_are_those_of_json_lines(tmp_path: Path) -> None:
    asked = ({"role": "user", "content": "Who?", "name": "ann"}, {"role": "user", "content": "Where?"})
    answers = ({"role": "assistant", "content": answer} for answer in ("The owl.", "In the bell."))
    rows = [{"messages": list(pair)} for pair in zip(asked, answers, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [scan_corpus((str(tmp_path / n),), TextFormat("line"), "train_file") for n in ("t.parquet", "t.jsonl")]
    one, other = ([tuple(piece) for piece in corpus.pieces()] for corpus in found)
    assert one == other
    assert [text for text, _, learned in one if learned and "In the bell." in text]
    assert [text for text, _, learned in one if not learned and "Where?" in text]


def test_a_compressed_text_is_the_same_text(tmp_path: Path) -> None:
    """So its tokens are found in the cache, and a run can be resumed with it."""
    content = b"\xef\xbb\xbfThe owl slept.\r\n\r\nA fox woke.\r\n"
    (tmp_path / "t.txt").write_bytes(content)
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(content))
    plain, packed = (
        scan_corpus((str(tmp_path / n),), TextFormat("paragraph"), "train_file") for n in ("t.txt", "t.txt.gz")
    )
    assert [piece.text for piece in packed.pieces()] == ["The owl slept.", "A fox woke."]
    assert packed.digest == plain.digest


def test_a_folder_is_read_with_parquet_and_compressed_files(tmp_path: Path) -> None:
    WRITERS["rows.parquet"](tmp_path / "a.parquet")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"from b\n"))
    (tmp_path / "settings.json").write_text('{"text": "not a text"}')
    (tmp_path / "b.bak.txt.gz").write_bytes(gzip.compress(b"a backup\n"))
    assert texts_in(tmp_path) == [*TEXTS, "from b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1\x15\x04PAR1", r"t.parquet is no complete Parquet file \(.*\): get or make it again"),
        ("t.arrow", b"ARROW1\0\0", "t.arrow is no complete Arrow file"),
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        ("t.txt.gz", gzip.compress(b"owl\n" * 9000, mtime=0)[:-9], "t.txt.gz is no complete .gz file"),
        ("t.txt.xz", lzma.compress(b"owl\n" * 9000)[:-9], "t.txt.xz is no complete .xz file"),
        ("t.txt.zst", b"owl\n" * 90, "t.txt.zst is no complete .zst file"),
        ("t.txt.gz", gzip.compress(b"caf\xe9\n", mtime=0), "is not UTF-8: byte 3"),
        ("t.txt.gz", gzip.compress(b"%PDF-1.4\n", mtime=0), "is a PDF"),
        ("t.json", b'[{"text": "x"},\n{"text": y}]', "t.json, line 2 is not valid JSON"),
        ("t.json", b'[{"text": "x"}\n{"text": "y"}]', "line 2: the array goes on without a comma"),
        ("t.json", b'[{"text": "x"},\n', "line 2: the array is not closed"),
        ("t.json", b'["x"]', 't.json, line 1 holds "x", not an object: write it like'),
        ("t.json", b'{"text": "x"}\n{"text": 7}', "t.json, line 2: text is 7, expected a string"),
        ("t.json", b'{"a": 1, "a": 2}', "line 1 has two values named a"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        texts_in(tmp_path / name)
    assert refusal.value.option == "train_file"


def test_the_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"title": ["a", "b"], "text": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet, row 1: text is 1, expected a string"):
        texts_in(tmp_path / "t.parquet")


def test_a_changed_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path)
    found = scan_corpus((str(path),), TextFormat("line"), "train_file")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["another"]}), path)
    with pytest.raises(UserError, match="changed while it was read"):
        list(found.pieces())
