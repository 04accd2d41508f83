"""Conversations in tables: which rows are read, and how malformed messages are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gpt2tg.errors import UserError
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.file_pass import TextFormat

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "Stars."}
TEXT = "User: Why?\nAssistant: Stars."


def scan(path: Path, *rows: Any, text_column: str | None = None) -> Corpus:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return scan_corpus((str(path),), TextFormat("line", text_column), "train_file")


def texts_of(corpus: Corpus) -> list[str]:
    texts, text = [], ""
    for piece in corpus.pieces():
        text += piece.text
        if piece.ends:
            texts.append(text)
            text = ""
    return texts


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "messages": [ASKED, ANSWERED]},
        {"messages": [ASKED, ANSWERED, ASKED]},  # a question without an answer teaches nothing
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Stars."}], "source": "x"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ANSWERED]},
        {"instruction": "Why?", "input": "", "output": "Stars."},
        {"Instruction": "Why?", "Output": "Stars.", "id": "3"},
    ],
)
def test_conversations_are_recognised(tmp_path: Path, row: dict[str, Any]) -> None:
    found = scan(tmp_path / "t.jsonl", row)
    assert texts_of(found) == [TEXT]
    assert found.has_prompts
    assert [notice for notice in found.notices if "as conversations, with the plain chat template" in notice]


def test_named_column_may_hold_conversations(tmp_path: Path) -> None:
    found = scan(tmp_path / "t.jsonl", {"text": "no", "talk": [ASKED, ANSWERED]}, text_column="talk")
    assert texts_of(found) == [TEXT]


def test_instructions_of_a_csv_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["instruction", "input", "output"], ["Add", "1, 2", "3"], ["Why?", "", "Stars."]])
    found = scan_corpus((str(path),), TextFormat("line"), "train_file")
    assert texts_of(found) == ["User: Add\n\n1, 2\nAssistant: 3", TEXT]


def test_column_of_texts_stays_first(tmp_path: Path) -> None:
    """Runs on such files are resumed on the same text."""
    found = scan(tmp_path / "t.jsonl", {"text": "The owl.", "messages": [ASKED, ANSWERED]})
    assert texts_of(found) == ["The owl."]
    assert not found.has_prompts


def test_rows_without_an_answer_are_skipped_and_counted(tmp_path: Path) -> None:
    blank = {"role": "assistant", "content": " "}
    rows = [{"messages": talk} for talk in ([ASKED, ANSWERED], [ASKED], [ASKED, blank, ASKED, ANSWERED], [])]
    found = scan(tmp_path / "t.jsonl", *rows)
    assert texts_of(found) == [TEXT]
    assert found.notices[-1].endswith("skipped 3 rows without an answer")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"content": "Why?"}, ANSWERED], "message 1 of messages has no role"),
        ([{"role": 3, "content": "Why?"}, ANSWERED], "message 1 of messages has the role 3"),
        ([ASKED, {"role": "assistant"}], "message 2 of messages, of the role assistant, has no text"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWERED], "message 1 of messages, of the role user"),
        (["Why?", "Stars."], "message 1 of messages has no role"),
        ([ASKED, {"role": "tool", "content": "x"}, ANSWERED], "the plain chat template .*unknown role tool"),
        ([{"role": "user", "content": "\ud83d"}, ANSWERED], "half of a character"),
        ("Why?", 'messages is "Why\\?", expected a list of messages'),
        ({"role": "user"}, 'messages is {"role": "user"}, expected a list of messages'),
    ],
)
def test_malformed_messages_are_refused_with_their_line(tmp_path: Path, messages: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"t.jsonl, line 2: .*{reason}"):
        scan(tmp_path / "t.jsonl", {"messages": [ASKED, ANSWERED]}, {"messages": messages})


@pytest.mark.parametrize("quoted", [json.dumps([ASKED, ANSWERED]), str([ASKED, ANSWERED])])
def test_conversations_in_quotes_are_refused(tmp_path: Path, quoted: str) -> None:
    """They would be learned as plain text, with all their brackets."""
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["messages"], [quoted]])
    with pytest.raises(UserError, match=r"t\.csv, line 2: messages is a conversation in quotes: .* \.jsonl"):
        scan_corpus((str(path),), TextFormat("line"), "train_file")
    with pytest.raises(UserError, match=r"t\.jsonl, line 1: messages is a conversation in quotes"):
        scan(tmp_path / "t.jsonl", {"messages": quoted})


def test_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no conversation with an answer: each needs a message whose role is assistant"):
        scan(tmp_path / "t.jsonl", {"messages": [ASKED, {"role": "bot", "content": "Stars."}]})
