"""Signals, closed streams, and a second run in the same directory."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import finetune_gpt2
from gpt2tg.checkpoint.runs import saved_checkpoints
from gpt2tg.options import TrainingOptions
from gpt2tg.training import interruption
from gpt2tg.training.finetune import finetune
from gpt2tg.training.interruption import MOST_STEPS_BETWEEN, SECONDS_BETWEEN, WARNINGS, Interruption, SignalConsensus
from gpt2tg.training.output.run_directory import RunDirectory
from gpt2tg.training.trainer import LanguageTrainer

ROOT = Path(__file__).parents[2]


def test_kill_at_a_random_moment_loses_no_checkpoint(forked_python: Path) -> None:
    """A kill of a short run; `make test-kills` does many."""
    command = [forked_python, "tests/training/kills.py", "--kills", "1", "--steps", "10"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "faults: none" in result.stdout


def test_first_ctrl_c_saves_and_second_quits(
    forked_python: Path, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--train_file", text_file, "--model_name", model_dir, "--output_dir", out, "--block_size", 16]
    words = [*map(str, words), "--max_steps", "1000000", "--save_steps", "1000000", "--logging_steps", "1"]
    words += ["--validation_split", "0"]
    # Saving is delayed after the first signal, so that the second one finds the run still busy.
    slow = (
        "import sys, time; sys.path.insert(0, '.'); import finetune_gpt2; from gpt2tg.training.trainer import *\n"
        "save = LanguageTrainer._save_checkpoint\n"
        "LanguageTrainer._save_checkpoint = lambda self, *rest: (time.sleep(float(sys.argv[1])), save(self, *rest))\n"
        "sys.exit(finetune_gpt2.main(sys.argv[2:]))"
    )
    for delay, signals in ((0, [signal.SIGINT]), (600, [signal.SIGINT, signal.SIGINT])):
        command = [forked_python, "-c", slow, str(delay), *words, *(["--resume"] if delay else [])]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            told = []
            for line in process.stderr:
                told.append(line)
                is_first = len(signals) == (2 if delay else 1)
                if line.startswith("step ") and is_first:
                    if not delay:
                        assert finetune_gpt2.main([*words, "--resume"]) == 2  # while the other run works there
                    process.send_signal(signals.pop())
                elif "this step is finished and saved first" in line and signals:
                    time.sleep(0.2)
                    process.send_signal(signals.pop())
        assert process.returncode == 130
        if delay:
            assert "ended at once: what was not yet saved is lost\n" in told
        else:
            (saved,) = saved_checkpoints(out)
            assert told[-2] == f"step {saved.step:,} of 1,000,000 is saved in {saved.path}\n"
            assert told[-1] == "to resume, add --resume to the same command\n"
    assert saved_checkpoints(out) == [saved]


@pytest.mark.parametrize("seconds", [0.02, 0.3, 5.0], ids=str)
@pytest.mark.parametrize("signalled", [0, 1])
def test_processes_stop_after_the_same_step_and_rarely_sync(
    monkeypatch: pytest.MonkeyPatch, seconds: float, signalled: int
) -> None:
    """Two threads stand in for the processes, one a little slower. A signal reaches either, early or late."""
    for step_of_signal in (1, 2, 57):
        asked, ended = two_processes(monkeypatch, seconds, signalled, step_of_signal)
        assert ended[0] == ended[1]
        within = max(2 * SECONDS_BETWEEN / seconds, 1)
        assert step_of_signal <= ended[0] <= step_of_signal + min(within, MOST_STEPS_BETWEEN)
        assert asked <= 3 + ended[0] * max(2 * seconds / SECONDS_BETWEEN, 2 / MOST_STEPS_BETWEEN)


def two_processes(
    monkeypatch: pytest.MonkeyPatch, seconds: float, signalled: int, step_of_signal: int
) -> tuple[int, list[int]]:
    """Return how often they synchronised, and after which step each knew of the signal."""
    meeting, given, clocks = threading.Barrier(2, timeout=10), {}, threading.local()
    asked, ended = [0], [0, 0]
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: clocks.now))

    class Accelerator:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, mine: torch.Tensor, reduction: str) -> torch.Tensor:
            given[clocks.rank] = mine
            meeting.wait()
            both = torch.stack([given[0], given[1]]).mean(dim=0)
            asked[0] += clocks.rank
            meeting.wait()
            return both

    def run(rank: int) -> None:
        clocks.rank, clocks.now = rank, 100.0 * rank
        signals = Interruption()
        consensus = SignalConsensus(Accelerator(), signals)
        for step in range(1, 1000):
            clocks.now += seconds * (1 + 0.4 * rank)
            if rank == signalled and step == step_of_signal:
                signals.signal = signal.SIGTERM
            if consensus.is_interrupted_at(step):
                ended[rank] = step
                return

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked[0], ended


def test_processes_agree_on_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clocks differ, and one is slower; a checkpoint is due in all of them after the same step."""
    times: dict[int, list[float]] = {0: [], 1: []}
    genuine = SignalConsensus.is_interrupted_at

    def noted(self: SignalConsensus, step: int) -> bool:
        is_interrupted = genuine(self, step)
        times[threading.current_thread() is not threads_of[0]].append(self.seconds)
        return is_interrupted

    threads_of: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (threads_of.append(self), start(self))[1])
    monkeypatch.setattr(SignalConsensus, "is_interrupted_at", noted)
    two_processes(monkeypatch, 0.3, 0, 30)
    assert times[0] == times[1]
    assert 0.3 * 30 * 0.8 < times[0][-1] < 0.3 * 30 * 1.4


@pytest.mark.parametrize(("minutes", "steps"), [("2", [2, 4, 6, 7]), ("0", [7]), ("100", [7])])
def test_checkpoint_is_saved_when_the_last_is_old(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: str, steps: list[int]
) -> None:
    """A step takes a minute here."""
    now = [0.0]
    genuine = LanguageTrainer.training_step
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        LanguageTrainer,
        "training_step",
        lambda self, *rest: (now.append(now.pop() + 60), genuine(self, *rest))[1],
    )
    out = tmp_path / "out"
    words = ["--train_file", text_file, "--model_name", model_dir, "--output_dir", out, "--block_size", 16]
    words += ["--max_steps", 7, "--save_minutes", minutes, "--save_total_limit", 0, "--validation_split", 0]
    assert finetune_gpt2.main([*map(str, words), "--device", "cpu"]) == 0
    assert [saved.step for saved in saved_checkpoints(out)] == steps


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in WARNINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", [name for name in ("SIGHUP", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)])
def test_warning_signal_saves_and_its_repeat_is_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closing terminal sends SIGHUP twice; a batch system's SIGTERM follows its warning while the run saves."""
    number, ended = getattr(signal, name), []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Interruption() as interruption:
        interruption.training = True
        for sent in (number, number, signal.SIGTERM):
            signal.raise_signal(sent)
            assert interruption.signal == number
        assert not ended
        signal.raise_signal(signal.SIGTERM)
        assert ended == [143]


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.skipif(not WARNINGS, reason="not on this system")
def test_signals_ignored_or_handled_by_others_are_kept() -> None:
    others = []
    for handler in (signal.SIG_IGN, lambda *signalled: others.append(signalled[0])):
        for number in WARNINGS:
            signal.signal(number, handler)
        with Interruption() as interruption:
            interruption.training = True
            for number in WARNINGS:
                signal.raise_signal(number)
            assert interruption.signal is None
    assert others == list(WARNINGS)


@pytest.mark.skipif(not WARNINGS, reason="not on this system")
def test_signal_reaches_the_run_inside_a_search() -> None:
    with Interruption() as search, Interruption() as run:
        run.training = True
        signal.raise_signal(WARNINGS[0])
        assert (search.signal, run.signal) == (None, WARNINGS[0])


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_warned_run_saves_and_resumes(
    text_file: Path, model_dir: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal is gone, so every print fails."""
    learn = LanguageTrainer.training_step

    def signalled(self: LanguageTrainer, *arguments: object) -> torch.Tensor:
        if self.state.global_step == 1:
            signal.raise_signal(getattr(signal, name))
        return learn(self, *arguments)

    monkeypatch.setattr(LanguageTrainer, "training_step", signalled)
    monkeypatch.setattr(sys, "stderr", Gone(errno.EIO))
    words = quick(text_file, model_dir, tmp_path)
    assert finetune_gpt2.main(words) == 128 + getattr(signal, name)
    assert [saved.step for saved in saved_checkpoints(tmp_path)] == [2]
    assert finetune_gpt2.main([*words, "--resume"]) == 0
    assert [saved.step for saved in saved_checkpoints(tmp_path)] == [2, 3]


def quick(text_file: Path, model_dir: Path, directory: Path, *rest: str) -> list[str]:
    words = ["--train_file", text_file, "--model_name", model_dir, "--output_dir", directory, "--block_size", 16]
    words += ["--validation_split", 0, "--max_steps", 3, "--save_steps", 9, "--logging_steps", 1, "--device", "cpu"]
    return [*map(str, words), *rest]


class Gone(io.StringIO):
    """A stream whose writes fail: a closed terminal, or a pipe without a reader."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def isatty(self) -> bool:
        return self._number == errno.EIO

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize(
    "broken",
    [Gone(errno.EIO), Gone(errno.EPIPE), Gone(errno.ENOSPC), "closed", None],
    ids=["terminal gone", "no reader", "full disk", "closed", "none"],
)
def test_unwritable_stderr_does_not_end_a_run(
    text_file: Path, model_dir: Path, tmp_path: Path, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "closed":
        broken = io.StringIO()
        broken.close()
    monkeypatch.setattr(sys, "stderr", broken)
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path), block_size=16, max_steps=2, logging_steps=1
    )
    assert finetune(options, str(model_dir), "cpu").steps == 2


def test_closed_pipe_does_not_end_a_run(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `2>&1 | head -1`: both streams are a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as pipe:  # as stderr is: each line is seen to fail
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", pipe)
        assert finetune_gpt2.main(quick(text_file, model_dir, tmp_path, "--show_blocks", "2")) == 0
    assert [saved.step for saved in saved_checkpoints(tmp_path)] == [3]


@pytest.mark.parametrize("name", ["publish", "merge_adapter"])
def test_ctrl_c_while_publishing_prints_the_resume_command(
    text_file: Path, model_dir: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All steps are saved, but the model is not yet published."""
    words = quick(text_file, model_dir, tmp_path, "--lora")
    done = getattr(RunDirectory, name)

    def interrupted(self: RunDirectory, *arguments: object) -> None:
        if not self.record.get("figures") or self.record["figures"]["step"] == 3:
            signal.raise_signal(signal.SIGINT)
        done(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, name, interrupted)
        assert finetune_gpt2.main(words) == 130
    told = capsys.readouterr().err
    assert told.splitlines()[-2] == "interrupted"
    assert told.splitlines()[-1] == "to resume, add --resume to the same command"
    assert finetune_gpt2.main([*words, "--resume"]) == 0
    assert (tmp_path / "model.safetensors").is_file()
