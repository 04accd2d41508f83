"""Every command reads texts in the same way: prompts, lines to score, references, training texts, sessions."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.batch.prompts import read_prompts
from gpt2tg.batch.scoring import lines_to_score
from gpt2tg.comparison.run import read_inputs
from gpt2tg.errors import UserError
from gpt2tg.options import CompareOptions, PromptOptions
from gpt2tg.session.files import load_session
from gpt2tg.session.front import plain_front
from gpt2tg.training.data.corpus import scan_corpus
from gpt2tg.training.data.file_pass import TextFormat

Capture = pytest.CaptureFixture[str]

TEXTS = ["The owl, who was old, slept.", "A fox asked the river."]


def as_prompts(path: Path) -> Sequence[str]:
    return [prompt.text for prompt in read_prompts(PromptOptions(prompts_file=str(path)))]


def as_lines_to_score(path: Path) -> Sequence[str]:
    return [text for _, text in lines_to_score(str(path))]


def as_reference(path: Path) -> Sequence[str]:
    return read_inputs(CompareOptions(reference=str(path)), [], print).reference


def as_training_text(path: Path) -> Sequence[str]:
    training = read_inputs(CompareOptions(train_file=str(path)), ["The owl"], print).training
    assert training is not None
    return training.rstrip("\n").split("\n")


def as_examples(path: Path) -> Sequence[str]:
    return [piece.text for piece in scan_corpus((str(path),), TextFormat("line"), "train_file").pieces()]


READERS = {
    "prompts_file": as_prompts,
    "score": as_lines_to_score,
    "reference": as_reference,
    "compare_train_file": as_training_text,
    "train_file": as_examples,
}
readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
Read = Callable[[Path], Sequence[str]]


def written(path: Path, column: str) -> Path:
    """Write the two texts in the format of the file name."""
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        lines = [json.dumps({column: text}) for text in TEXTS]
    elif kind == ".csv":
        lines = [f"n;{column}", *(f"1;{text}" for text in TEXTS)]
    elif kind == ".tsv":
        lines = [f"{column}\tn", *(f"{text}\t2" for text in TEXTS)]
    else:
        lines = TEXTS
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@readers
@pytest.mark.parametrize("name", ["t.jsonl", "t.NDJSON", "t.csv", "t.TSV", "t.txt"])
def test_every_command_reads_the_same_texts(tmp_path: Path, read: Read, name: str) -> None:
    column = "prompt" if read is as_prompts else "text"
    assert [*read(written(tmp_path / name, column))] == TEXTS


@readers
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "The owl\n".encode("utf-16"), "is UTF-16, expected UTF-8; convert it with: iconv"),
        ("t.csv", "text\nThe owl\n".encode("utf-32"), "is UTF-32, expected UTF-8; convert it with: iconv"),
        ("t.txt", b"The owl\0\n", "is a binary file: byte 7 is zero"),
        ("t.txt", b"caf\xe9\n", "is not UTF-8: byte 3"),
        ("t.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        ("t.ipynb", b'{"text": "The owl"}', "would be read as plain text: write one object per line into a .jsonl"),
        ("t.pdf", b"%PDF-1.4\n", "is a PDF"),
        ("t.csv", b"text\nThe owl, old, slept.\n", "line 2: 3 values for 1 column"),
        (
            "t.jsonl",
            rb'{"text": "a", "prompt": "cut \ud83d"}' + b"\n" + rb'{"text": "cut \ud83d"}',
            r"\ud83d, half of a",
        ),
        ("t.jsonl", b"The owl\n", "line 1"),
    ],
)
def test_every_command_refuses_what_is_not_text(
    tmp_path: Path, read: Read, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert message in caught.value.message
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.option in READERS


@pytest.mark.parametrize("mode", ["line", "paragraph", "file"])
def test_a_reference_is_read_as_training_reads_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n \t\r\n  three \r\n\r\n\r\nfour".encode())
    found = scan_corpus((str(path),), TextFormat(mode), "train_file")
    assert read_inputs(CompareOptions(reference=str(path), examples=mode), [], print).reference == tuple(
        piece.text for piece in found.pieces()
    )


def test_prompt_and_completion_are_joined_for_scoring(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt,completion\nThe owl:, slept.\n")
    assert as_reference(path) == ("The owl: slept.",)
    assert as_lines_to_score(path) == ["The owl: slept."]
    assert as_prompts(path) == ["The owl:"]


# ---- at the command line ----


def test_texts_of_a_table_are_scored(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    """Rows are numbered by their first line; a text of several lines is one row of the printed table."""
    path = tmp_path / "t.csv"
    path.write_text('id;story;note\n1;"The owl\nslept.";\n\n2;A fox;x\n')
    words = ["--model_path", str(model_dir), "--score", str(path), "--text_column", "story"]
    assert generate_from_finetuned.main([*words, "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    entries = [json.loads(line) for line in out.splitlines()]
    assert [(entry["line"], entry["text"]) for entry in entries] == [(2, "The owl\nslept."), (5, "A fox")]
    assert f'{path}: reading the column "story" (of id, story, note; semicolons between them)\n' in err
    assert generate_from_finetuned.main(words) == 0
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["The owl slept.", "A fox"]


def test_evaluation_reports_the_column(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id|text\n1|The owl slept.\n")
    words = ["--task", "evaluate", "--model_name", str(model_dir), "--eval_file", str(path)]
    assert gpt2_text_generation.main(words) == 0
    assert f'{path}: reading the column "text" (of id, text; bars between them)' in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--reference", "--train_file"])
def test_comparison_refuses_a_broken_table(tmp_path: Path, flag: str, capsys: Capture) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"\n')
    words = ["--compare", "--model_name", "gpt2-tiny", "--prompt", "The owl"]
    assert text_generation_demo.main([*words, flag, str(path)]) == 2
    assert f"{flag} {path}, line 2 is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--compare"], ["--tune"]])
def test_comparison_and_tuning_accept_text_column(tmp_path: Path, words: list[str], capsys: Capture) -> None:
    path = tmp_path / "t.csv"
    path.write_text("title;story\na;The owl slept.\n")
    words = [*words, "--model_name", "no/such/model", "--reference", str(path), "--text_column"]
    assert text_generation_demo.main([*words, "poem"]) == 2
    assert f"--reference {path} has no column poem: it has title, story" in capsys.readouterr().err
    assert text_generation_demo.main([*words, "story"]) == 2
    assert f'{path}: reading the column "story" (of title, story; semicolons' in capsys.readouterr().err


def test_text_column_for_plain_prompts_is_refused(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    path = written(tmp_path / "t.txt", "prompt")
    words = ["--model_path", str(model_dir), "--prompts_file", str(path), "--text_column", "story"]
    assert generate_from_finetuned.main(words) == 2
    assert "--text_column story names a column of a table (.csv, .tsv, .jsonl, .ndjson, " in capsys.readouterr().err


@pytest.mark.parametrize("line", [r'{"prompt": "\ud83d"}', r'{"prompt": "a", "stop": ["\udc00"]}'])
def test_half_an_emoji_in_prompts_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "The owl", "stop": ["\\ud83e\\udd8a"]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"line 2 holds \\ud[8c][03][0d], half of a character"):
        read_prompts(PromptOptions(prompts_file=str(path)))


def test_half_an_emoji_in_a_session_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    first = {"gpt2tg_session": 1, "model": "gpt2-tiny", "turns": 1, "settings": {}}
    turn = {"typed": "cut \ud83d", "written": " a", "settings": None}
    path.write_text(json.dumps(first) + "\n" + json.dumps(turn) + "\n")
    with pytest.raises(UserError, match=r"line 2 holds \\ud83d, half of a character"):
        load_session(path)


def test_byte_order_mark_on_stdin_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffThe owl\nA fox\n"))
    assert lines_to_score("-") == [(1, "The owl"), (2, "A fox")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffThe owl\n"))
    assert [prompt.text for prompt in read_prompts(PromptOptions(prompt="-"))] == ["The owl"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffThe owl\n\ufeffA fox\n"))
    session = plain_front(print, print)
    assert [session.read(), session.read()] == ["The owl", "\ufeffA fox"]  # it is a mark at the beginning alone


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such file there")
def test_prompts_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"The owl\nA fox\n")
    os.close(writing)
    assert as_prompts(Path(f"/dev/fd/{reading}")) == ["The owl", "A fox"]
    os.close(reading)
