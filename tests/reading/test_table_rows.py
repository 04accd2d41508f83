"""Read tables: a malformed table is refused, so that no text is lost and nothing else is read as text."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from gpt2tg.errors import UserError
from gpt2tg.training.data.corpus import scan_corpus
from gpt2tg.training.data.file_pass import TextFormat


def read(path: Path, content: str | bytes, text_column: str | None = None) -> tuple[list[str], list[str]]:
    """Return the examples in a file with this content, and the notices on it."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = scan_corpus((str(path),), TextFormat("line", text_column), "train_file")
    examples, parts = [], ""
    for piece in found.pieces():
        parts += piece.text
        if piece.ends:
            examples.append(parts)
            parts = ""
    return examples, [notice.removeprefix(f"{path}: ") for notice in found.notices]


def refusal(path: Path, content: str | bytes, text_column: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(path, content, text_column)
    assert str(path) in caught.value.message
    return caught.value.message


# ---- what separates the values ----

TEXTS = ["The owl, who was old; slept.", 'She said "no",\ntwice.', "a|b", "tab\tbed", "plain", "naïve 猫"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_delimiter_is_detected(tmp_path: Path, delimiter: str, end: str, start: str, suffix: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end)
    writer.writerows([["id", "text", "note"], *([n, text, ""] for n, text in enumerate(TEXTS))])
    assert read(tmp_path / f"t{suffix}", start + written.getvalue())[0] == TEXTS


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\r\n', "\ufeffSEP=;\r\n"])
def test_declared_delimiter_is_used_and_not_read_as_text(tmp_path: Path, first: str) -> None:
    assert read(tmp_path / "t.csv", f"{first}text;a,b\r\nOne, two;1\r\n")[0] == ["One, two"]


def test_delimiter_of_random_tables_is_detected(tmp_path: Path) -> None:
    """Compares with Python's csv writer, which quotes where necessary."""
    chance = random.Random(3)
    for _ in range(60):
        delimiter = chance.choice(",;\t|")
        rows = [
            [str(n), "".join(chance.choices('ab,;\t|" \n', k=chance.randrange(1, 30))).strip() or "x"]
            for n in range(chance.randrange(1, 8))
        ]
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=delimiter, lineterminator="\n").writerows([["id", "text"], *rows])
        assert read(tmp_path / "t.csv", written.getvalue())[0] == [text for _, text in rows], written.getvalue()


# ---- rows that do not fit ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nThe owl, who was old, slept.\n", "line 2: 3 values for 1 column; put texts that contain commas in"),
        ("text\nRoses are red,\nViolets are blue.\n", "line 2: 2 values for 1 column"),
        ("id;text\n1;The owl; she slept.\n", "line 2: 3 values for 2 columns; put texts that contain semicolons"),
        ("id,text\n1,Roses are red,\n", "line 2: 3 values for 2 columns"),
        ("id,text\n1,a\n\n2\n", "line 4: 1 value for 2 columns"),
        ("id,text\n1,one line\nanother\n", "line 3: 1 value for 2 columns; put texts with line breaks in quotes"),
        ("text,text\na,b\n", "line 1: two columns are named text"),
        ("id,text\n1,\"never\n2,closed\n", "line 2: the row that begins here has a quote that is not closed"),
        ("id,text\n1,\"never\n2,\"closed\"\n", "line 3: a quote is not doubled or not closed in the row"),
        ('id, text\n1, "quoted"\n', "line 2: a space before the opening quote makes it part of the text"),
        (",,\n1,2,3\n", "line 1 has no column names"),
        ('{"text": "The owl, who"}\n', "line 1 is JSON, not a line of column names: name the file .jsonl"),
        ("| id | text |\n|---|:---|\n| 1 | The owl |\n", "line 2 belongs to a Markdown table"),
        ("<!DOCTYPE html>\n<html></html>\n", "is a web page, not a table"),
        ("1,The owl slept.\n2,The fox ran.\n", "If line 1 does not hold column names, write some above it"),
    ],
)  # fmt: skip
def test_malformed_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in refusal(tmp_path / "t.csv", content)


@pytest.mark.parametrize("content", ["", "\n", "text\n", "id,text\n\n", "sep=;\n", "sep=;\n\n", "id,text\n1,\n"])
def test_a_table_without_rows_holds_no_text(tmp_path: Path, content: str) -> None:
    assert "holds no text" in refusal(tmp_path / "t.csv", content)


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    """After a declared delimiter, blank lines and texts of several lines."""
    content = 'sep=,\n\nid,text\n1,"one\ntwo"\n\n2,three,four\n'
    assert "line 7: 3 values" in refusal(tmp_path / "t.csv", content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("id,text,\n1,one,\n2,two,\n", id="a delimiter at the end of all lines"),
        pytest.param("text,id\none,1,\ntwo,2,,\n", id="a delimiter at the end of rows, not behind the text"),
        pytest.param(",text\n0,one\n1,two\n", id="a column without a name"),
        pytest.param("\n\nid,text\n\n1,one\n   \n2,two\n\n", id="blank lines"),
        pytest.param("id, Text \n1,one\n2,two\n", id="a name in capitals, with blanks"),
        pytest.param('"id","TEXT"\n"1","one"\n"2","two"\n', id="everything quoted"),
        pytest.param("text\rone\rtwo\r", id="lines that end in CR"),
    ],
)
def test_untidy_tables_are_read(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "t.csv", content)[0] == ["one", "two"]


# ---- files without a line of names ----


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["The owl slept.", "The fox ran."], id="sentences"),
        pytest.param(["The owl slept"], id="one line"),
        pytest.param(["Anna", "Bert", "Clara"], id="names"),
        pytest.param(["fox", "owl", "cat"], id="words"),
        pytest.param(["die Eule", "der Fuchs"], id="two words"),
        pytest.param(["Hello!", "This is a much longer text than the first."], id="a short first text"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_first_text_is_not_taken_for_a_name(tmp_path: Path, lines: list[str], name: str) -> None:
    message = refusal(tmp_path / name, "\n".join(lines) + "\n")
    assert f'line 1: is "{lines[0]}" the column name or the first text?' in message
    assert "--text_column" in message


@pytest.mark.parametrize("name", ["story", "Poem", "headline", "names", "Märchentext", "my_column"])
def test_the_only_column_is_read_where_it_has_a_name(tmp_path: Path, name: str) -> None:
    texts = ["The owl counted the bells and slept.", "A fox asked the river for its name."]
    assert read(tmp_path / "t.csv", "\n".join([name, *texts]))[0] == texts


def test_named_column_is_not_questioned(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", "Anna\nBert\n", "Anna")[0] == ["Bert"]


# ---- which column ----


@pytest.mark.parametrize(
    ("name", "content", "notice"),
    [
        ("t.csv", "text\na\n", 'reading the column "text"'),
        ("t.csv", "id;Text\n1;a\n", 'reading the column "Text" (of id, Text; semicolons between them)'),
        ("t.csv", "prompt,completion\np,a\n", 'reading the columns "prompt" and "completion"'),
        ("t.jsonl", '{"text": "a", "id": 1}\n', 'reading the column "text"'),
    ],
)
def test_the_column_being_read_is_reported(tmp_path: Path, name: str, content: str, notice: str) -> None:
    assert read(tmp_path / name, content)[1][0].startswith(notice)


def test_equal_notices_on_many_tables_are_merged(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.csv").write_text("text\na\n")
    found = scan_corpus((str(tmp_path),), TextFormat("line"), "train_file")
    assert found.notices == (f'5 files, such as {tmp_path / "0.csv"}: reading the column "text"',)


@pytest.mark.parametrize("content", ["Text,TEXT\na,b\n", '{"Text": "a", "TEXT": "b"}\n'])
def test_column_names_that_differ_only_in_case_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / ("t.jsonl" if content.startswith("{") else "t.csv")
    assert "has the columns Text, TEXT: choose the one that holds the text with --text_column" in refusal(path, content)


# ---- jsonl ----


def objects(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_rows_without_the_column_are_reported(tmp_path: Path) -> None:
    content = objects({"content": "lost"}, {"text": "a"}, {"text": "b", "id": 1}, {"text": None})
    texts, notices = read(tmp_path / "t.jsonl", content)
    assert texts == ["a", "b"]
    assert notices[1:] == [
        "skipped rows with no text in 1 of 4 rows, such as line 1, which has content",
        "skipped 1 row without text",
    ]


def test_a_column_that_most_rows_lack_is_refused(tmp_path: Path) -> None:
    content = objects(*[{"story": "a"}] * 100, *[{"content": "b"}] * 101)
    message = refusal(tmp_path / "t.jsonl", content)
    assert "has no story in 101 of 201 rows, such as line 101, which has content" in message


def test_named_column_may_be_missing_in_the_first_rows(tmp_path: Path) -> None:
    content = objects({"title": "x"}, {"story": "a"}, {"story": "b"})
    assert read(tmp_path / "t.ndjson", content, "story")[0] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (r'{"text": "whole \ud83e\udd8a"}' + "\n" + r'{"text": "cut \ud83e"}', r"line 2: text holds \ud83e, half of a"),
        (r'{"prompt": "\udd8a", "completion": "a"}', r"line 1: prompt holds \udd8a, half of a character"),
        ('{"text": "a", "text": "b"}', "line 1 has two values named text"),
        ('{"text": ' + "9" * 5000 + "}", "line 1: text is inf, expected a string"),
        ('{"text": NaN}', "line 1: text is nan, expected a string"),
        ('[{"text": "a"}]', "line 1 is not a JSON object: write each object on a line of its own"),
        ('[\n{"text": "a"}\n]', "line 1 begins JSON that spans several lines"),
        ('{\n"text": "a"\n}', "line 1 begins JSON that spans several lines"),
        ("[" * 100_000, "line 1 is not valid JSON (nested too deeply)"),
        ('{"text": "a"} {"text": "b"}', "line 1 is not valid JSON (Extra data at character 15)"),
    ],
)
def test_invalid_json_error_names_line_and_reason(tmp_path: Path, content: str, message: str) -> None:
    assert message in refusal(tmp_path / "t.jsonl", content)


def test_columns_that_are_not_read_are_not_checked(tmp_path: Path) -> None:
    content = '{"text": "a", "n": ' + "9" * 5000 + r', "user": "\ud83d", "score": NaN}'
    assert read(tmp_path / "t.JSONL", content)[0] == ["a"]


def test_overlong_line_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2tg.reading.table_row.MAX_FIELD_CHARACTERS", 1000)
    assert "line 2 is longer than 1,000 characters" in refusal(tmp_path / "t.jsonl", '{"text": "a"}\n' + "x" * 5000)


# ---- names and contents that disagree ----


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', "looks like JSON"),
        ("id,text\n1,a\n", "looks like a table"),
        ("<!doctype html>\n<p>a</p>\n", "looks like a web page"),
    ],
)
def test_plain_text_that_looks_like_another_format_is_reported(tmp_path: Path, content: str, notice: str) -> None:
    texts, (warning,) = read(tmp_path / "t.txt", content)
    assert texts == content.splitlines()
    assert warning.startswith(notice)


def test_lines_that_end_in_cr_alone_are_reported(tmp_path: Path) -> None:
    for content in ("The owl\rA fox\r", "The owl\rA fox"):
        texts, (warning,) = read(tmp_path / "t.txt", content)
        assert texts == [content]
        assert "lines end in CR alone" in warning
    for content in ("The owl\r\nA fox\r\n", "The owl\r", "The\rowl\nA fox\n", "The owl"):
        assert read(tmp_path / "t.txt", content)[1] == []


def test_prose_gives_no_warning(tmp_path: Path) -> None:
    for content in ("A text, and more text.\n", "{braces}\nThe owl\n", "Text: the owl\n", "<The owl>\n"):
        assert read(tmp_path / "t.txt", content)[1] == []
