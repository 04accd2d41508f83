"""Several processes that share prompts, forked from this one, against a single process."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import generate_from_finetuned
import text_generation_demo
from gpt2tg.batch import writing
from gpt2tg.batch.jobs import Job
from gpt2tg.batch.rendering import Rendered
from gpt2tg.generation.requests import Request
from gpt2tg.options import decoding_options

PROMPTS = ["The owl", "A fox counted", "Two", "Nobody told the river it was", "é猫", "An ink-cat", "The baker", "So"]

# Lines with settings of their own, and texts of very different lengths.
LINES = [{"prompt": text, "max_new_tokens": 3 + 9 * (n % 3)} for n, text in enumerate(PROMPTS)] + [
    {"prompt": "The end", "decoding": "beam", "num_beams": 2, "num_sequences": 2, "stop": ["e"]}
]


pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Python 3.12 and newer, on forks beside threads
]


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_together(words: Sequence[str], place: Path, prepare: Callable[[int], None] = lambda number: None) -> list[int]:
    """Run a command in two forks that find each other as those of a launcher do; return their exit codes.

    The first one's stdout and stderr go to files in `place`; `prepare` gets the number of the process.
    """
    found = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for number in range(2):
        if (child := os.fork()) == 0:
            code = 99
            try:
                os.environ |= {**found, "RANK": str(number), "LOCAL_RANK": str(number)}
                sys.stdout = (place / f"stdout-{number}.txt").open("w", encoding="utf-8")
                sys.stderr = (place / f"stderr-{number}.txt").open("w", encoding="utf-8")
                os.dup2(sys.stderr.fileno(), 2)
                prepare(number)
                code = generate_from_finetuned.main(words)
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture
def words(model_dir: Path, tmp_path: Path) -> list[str]:
    """A command that writes records for the lines."""
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    model = ["--model_path", str(model_dir), "--batch_size", "2", "--seed", "3", "--num_sequences", "1"]
    return [*model, "--prompts_file", str(lines), "--format", "jsonl"]


@pytest.fixture
def records(words: list[str], tmp_path: Path) -> bytes:
    """The records that a single process writes."""
    assert generate_from_finetuned.main([*words, "--output", str(tmp_path / "one.jsonl")]) == 0
    return (tmp_path / "one.jsonl").read_bytes()


def end_early(number: int) -> None:
    """Kill the second process after two texts. The first one generates one text, and ends a second after it began."""
    genuine, counts = writing._texts, iter(range(100))

    def texts(*arguments: Any) -> Iterator[Rendered]:
        for rendered in genuine(*arguments):
            yield rendered
            count = next(counts)
            if number == 1 and count == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            elif number == 0:
                signal.pause()

    writing._texts = texts
    end_after_a_second(number)


def end_after_a_second(number: int) -> None:
    """Let SIGALRM end the first process, as torchrun would after a failure of the second."""
    if number == 0:
        signal.setitimer(signal.ITIMER_REAL, 1.0)


def test_killed_process_loses_nothing_that_was_written(words: list[str], records: bytes, tmp_path: Path) -> None:
    """Until the next run, the records are in the order in which they were finished."""
    out = tmp_path / "two.jsonl"
    command = [*words, "--output", str(out)]
    assert run_together(command, tmp_path, end_early) == [-signal.SIGALRM, -signal.SIGKILL]
    left = out.read_bytes().splitlines(keepends=True)
    assert len(left) == 3
    assert set(left) < set(records.splitlines(keepends=True))
    assert run_together(command, tmp_path) == [0, 0]
    assert out.read_bytes() == records
    assert f"3 of {len(LINES)} prompts are done" in (tmp_path / "stderr-0.txt").read_text()
    assert (tmp_path / "stderr-1.txt").read_text() == ""


@pytest.mark.parametrize("missing", [0, 2])
def test_records_in_another_order_are_completed_and_sorted(
    words: list[str], records: bytes, tmp_path: Path, missing: int
) -> None:
    """As several processes leave them when they are killed; also if only the sorting was left to do."""
    out = tmp_path / "two.jsonl"
    lines = records.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[4:] + lines[: 4 - missing]))
    files = set(tmp_path.iterdir())
    assert generate_from_finetuned.main([*words, "--output", str(out)]) == 0
    assert out.read_bytes() == records
    assert set(tmp_path.iterdir()) == files


def test_records_on_stdout_are_in_order(words: list[str], records: bytes, tmp_path: Path) -> None:
    assert run_together(words, tmp_path) == [0, 0]
    assert (tmp_path / "stdout-0.txt").read_bytes() == records
    assert (tmp_path / "stdout-1.txt").read_bytes() == b""


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_scores_equal_those_of_one_process(model_dir: Path, tmp_path: Path, form: str) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n\n".join(PROMPTS * 2), encoding="utf-8")
    command = ["--model_path", str(model_dir), "--score", str(lines), "--format", form, "--show_probabilities"]
    assert generate_from_finetuned.main([*command, "--output", str(tmp_path / "one")]) == 0
    assert run_together([*command, "--output", str(tmp_path / "two")], tmp_path) == [0, 0]
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_failure_of_one_process_is_printed_by_it(words: list[str], tmp_path: Path) -> None:
    def prepare(number: int) -> None:
        end_after_a_second(number)
        if number == 1:
            writing._texts = lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))

    assert run_together(words, tmp_path, prepare) == [-signal.SIGALRM, 1]
    told = (tmp_path / "stderr-1.txt").read_text()
    assert told.startswith("generate_from_finetuned.py: error: process 1: out of memory: lower --batch_size")
    assert told.count("\n") == 1


def test_tasks_shrink_towards_the_end() -> None:
    """All jobs are handed out once, in whole batches, and the last tasks are single batches."""
    options = decoding_options({"decoding": "greedy"})
    jobs = [Job(Request("", index, (1,), 1), options) for index in range(101)]
    found = [[job["request"]["index"] for job in task["jobs"]] for task in writing.tasks(jobs, 4, 3)]
    assert [index for task in found for index in task] == list(range(101))
    sizes = [len(task) for task in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size % 4 == 0 for size in sizes[:-1])
    assert sizes[0] == 16  # a sixth of 101, rounded down to whole batches
    assert sizes[-6:-1] == [4] * 5


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (generate_from_finetuned, ["--prompt", "x"], "--prompts_file has the prompts that several processes share"),
        (generate_from_finetuned, ["--prompts_file", "x", "--device", "cuda:1"], "--device cuda:1 is for a single"),
        (generate_from_finetuned, ["--candidates", "3"], "--candidates is for a single process: start it without"),
        (generate_from_finetuned, ["--list"], "--list is for a single process"),
        (generate_from_finetuned, ["--interactive"], "a session is for a single process"),
        (text_generation_demo, ["--compare"], "--compare is for a single process"),
    ],
)
def test_commands_for_one_process_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: Any, words: list[str], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert script.main(["--model_path", "gpt2-tiny", *words]) == 2
    assert message in capsys.readouterr().err


def test_missing_address_of_the_launcher_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert generate_from_finetuned.main(words) == 2
    assert "WORLD_SIZE=2 announces several processes, but they cannot meet" in capsys.readouterr().err
