"""--show_probabilities, --candidates and --score on the command line."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import FABLES
from transformers import GPT2LMHeadModel

import generate_from_finetuned
import gpt2_text_generation
from gpt2tg.checkpoint.tokenizer import TextTokenizer

Capture = pytest.CaptureFixture[str]


def run(model_dir: Path, *words: str) -> int:
    return generate_from_finetuned.main(["--model_path", str(model_dir), *words])


def loss_by_transformers(reference: GPT2LMHeadModel, ids: list[int]) -> float:
    """Return the mean loss per token, after the end-of-text token."""
    text = torch.tensor([[0, *ids]])
    with torch.inference_mode():
        return reference(input_ids=text, labels=text).loss.item()


def test_scores_equal_the_loss_of_transformers(
    model_dir: Path, text_file: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel, capsys: Capture
) -> None:
    assert run(model_dir, "--score", str(text_file), "--format", "jsonl") == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["text"] for entry in entries] == FABLES
    assert [entry["line"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    for entry in entries:
        ids = tokenizer.encode(entry["text"])
        loss = loss_by_transformers(reference, ids)
        assert entry["text_tokens"] == len(ids)
        assert entry["logprob"] == pytest.approx(-loss * len(ids), rel=1e-4)
        assert entry["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert "tokens" not in entry


def test_score_table_equals_transformers(
    model_dir: Path, tmp_path: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel, capsys: Capture
) -> None:
    """Blank lines are skipped, but counted. The last row is for all lines together."""
    file = tmp_path / "lines.txt"
    file.write_bytes(f"\ufeff{FABLES[4]}\r\n\r\n  \r\n{FABLES[3]}\r\n".encode())
    assert run(model_dir, "--score", str(file)) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["line", "tokens", "log-probability", "perplexity", "text"]
    wanted, tokens, nats = [], 0, 0.0
    for number, line in (("1", FABLES[4]), ("4", FABLES[3])):
        ids = tokenizer.encode(line)
        loss = loss_by_transformers(reference, ids)
        wanted.append([number, len(ids), -loss * len(ids), math.exp(loss)])
        tokens, nats = tokens + len(ids), nats + loss * len(ids)
    wanted.append(["all", tokens, -nats, math.exp(nats / tokens)])
    for row, (number, count, logprob, perplexity) in zip(rows, wanted, strict=True):
        figures = row.split()[:4]
        assert figures[:2] == [number, str(count)]
        assert float(figures[2]) == pytest.approx(logprob, rel=1e-3)
        assert float(figures[3]) == pytest.approx(perplexity, rel=1e-3)
    assert rows[0].endswith("  Nobody told the river it was early, s...")


def test_scores_include_the_tokens_of_each_line(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "line.txt"
    file.write_text(FABLES[0], encoding="utf-8")
    assert run(model_dir, "--score", str(file), "--show_probabilities", "--format", "jsonl") == 0
    (entry,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(token["text"] for token in entry["tokens"]) == FABLES[0]
    assert sum(token["logprob"] for token in entry["tokens"]) == pytest.approx(entry["logprob"])
    assert run(model_dir, "--score", str(file), "--show_probabilities") == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[-1] for line in out.splitlines()[4:]] == [
        json.dumps(token["text"]) for token in entry["tokens"]
    ]


def test_stdin_can_be_scored(model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The fox\n"))
    assert run(model_dir, "--score", "-", "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["text"] == "The fox"


def test_candidates_equal_transformers(
    model_dir: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel, capsys: Capture
) -> None:
    with torch.inference_mode():
        logits = reference(torch.tensor([tokenizer.encode("The fox")])).logits[0, -1]
    values, ids = logits.softmax(dim=0).topk(4)
    assert run(model_dir, "--candidates", "4", "--prompt", "The fox", "--format", "jsonl") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["prompt"] == "The fox"
    assert [candidate["id"] for candidate in entry["candidates"]] == ids.tolist()
    assert [candidate["probability"] for candidate in entry["candidates"]] == pytest.approx(values.tolist(), abs=1e-5)
    assert run(model_dir, "--candidates", "4", "--prompt", "The fox") == 0
    _, *rows, rest = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows] == [
        [str(rank), f"{100 * value:.2f}", "%"] for rank, value in enumerate(values.tolist(), start=1)
    ]
    assert f"{100 - 100 * values.sum().item():.2f} %" in rest


def test_candidates_of_several_prompts(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The fox\nThe owl\n", encoding="utf-8")
    assert run(model_dir, "--candidates", "2", "--prompts_file", str(prompts)) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ['"The fox"', '"The owl"']
    for prompt, block in zip(("The fox", "The owl"), blocks, strict=True):
        run(model_dir, "--candidates", "2", "--prompt", prompt)
        assert capsys.readouterr().out.strip("\n") == block.strip("\n").partition("\n")[2]


@pytest.mark.parametrize("count", ["1", "2"])
def test_show_probabilities_adds_a_table_to_each_text(model_dir: Path, count: str, capsys: Capture) -> None:
    """One text is streamed, several are not. Each is followed by its table on stdout."""
    words = ["--prompt", "The fox", "--max_new_tokens", "8", "--seed", "4", "--num_sequences", count]
    assert run(model_dir, *words, "--show_probabilities", "--format", "jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    blocks = []
    for record in records:
        assert len(record["tokens"]) == record["completion_tokens"] == 8
        assert "".join(token["text"] for token in record["tokens"]) == record["completion"]
        assert sum(token["logprob"] for token in record["tokens"]) == pytest.approx(record["logprob"], abs=1e-3)
        assert set(record["tokens"][0]) == {"text", "id", "probability", "logprob", "rank", "entropy"}
        rows = [
            [f"{100 * token['probability']:.2f}", "%", str(token["rank"]), f"{token['entropy']:.2f}"]
            for token in record["tokens"]
            if token["probability"] >= 0.00005
        ]
        blocks.append((record["prompt"] + record["completion"], rows))
    assert run(model_dir, *words, "--show_probabilities") == 0
    out = capsys.readouterr().out
    for text, rows in blocks:
        assert text in out
        table = [line.split()[:4] for line in out[out.index(text) + len(text) :].splitlines()[3:11]]
        assert [row for row in table if row[0] != "<"] == rows


def test_file_with_probabilities_equals_stdout(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--max_new_tokens", "5", "--seed", "4", "--num_sequences", "2", "--show_probabilities"]
    assert run(model_dir, *words) == 0
    shown = capsys.readouterr().out
    assert run(model_dir, *words, "--output", str(tmp_path / "texts.txt")) == 0
    assert (tmp_path / "texts.txt").read_text(encoding="utf-8") == shown


def test_scores_file_is_complete_or_unchanged(
    model_dir: Path, text_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The file is written at once. An existing file is never extended, unlike one of texts."""
    output = tmp_path / "scores.jsonl"
    words = ["--score", str(text_file), "--format", "jsonl", "--output", str(output)]
    assert run(model_dir, *words) == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 6
    assert capsys.readouterr().out == ""
    assert run(model_dir, *words) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(model_dir, *words, "--overwrite") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_both_generating_scripts_print_candidates(model_dir: Path, capsys: Capture) -> None:
    command = ["--task", "generate", "--model_name", str(model_dir), "--candidates", "1"]
    assert gpt2_text_generation.main(command) == 0
    assert capsys.readouterr().out.startswith(" rank  probability  token\n    1")


def test_records_with_and_without_probabilities_are_not_mixed(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--max_new_tokens", "3", "--seed", "1", "--format", "jsonl", "--output", str(tmp_path / "texts.jsonl")]
    assert run(model_dir, *words) == 0
    assert run(model_dir, *words, "--show_probabilities") == 2
    assert "its records lack the probabilities of --show_probabilities" in capsys.readouterr().err
    assert run(model_dir, *words, "--show_probabilities", "--overwrite") == 0
    assert run(model_dir, *words) == 2
    assert "its records have the probabilities" in capsys.readouterr().err
    assert run(model_dir, *words, "--show_probabilities") == 0


def test_mistakes_are_reported_in_one_line(model_dir: Path, tmp_path: Path, text_file: Path, capsys: Capture) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    mistakes = {
        "--score nowhere.txt cannot be read: No such file": ["--score", "nowhere.txt"],
        "holds no text": ["--score", str(empty)],
        "--candidates 3 and --score": ["--candidates", "3", "--score", str(text_file)],
        "--candidates 0 is out of range": ["--candidates", "0"],
        "--candidates some is not valid": ["--candidates", "some"],
        "--prompt of 360 tokens exceeds the context length of 64": ["--candidates", "3", "--prompt", "\u732b" * 120],
        "--temperature -1.0 is out of range": ["--score", str(text_file), "--temperature", "-1"],
    }
    for message, words in mistakes.items():
        assert run(model_dir, *words) == 2, message
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err.splitlines()[-1]
    assert run(model_dir, "--candidates", "3", "--prompt", "\u732b" * 120, "--overflow", "slide") == 0


def test_unused_flags_are_reported(model_dir: Path, text_file: Path, capsys: Capture) -> None:
    assert run(model_dir, "--score", str(text_file), "--top_p", "0.5", "--prompt", "The fox") == 0
    assert capsys.readouterr().err.splitlines() == [
        "--top_p is not used: --score measures given lines as they are",
        "--prompt is not used: --score measures given lines as they are",
    ]
    assert run(model_dir, "--candidates", "2", "--seed", "5", "--show_probabilities") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "--seed is not used", "--show_probabilities is not used",
    ]  # fmt: skip
