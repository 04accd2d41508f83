"""Kills training runs by real signals at random moments, and resumes them: python tests/training/kills.py --kills 60

After each kill every checkpoint that bears its name must be whole, and there must be one once there has been one.
A run that was killed and resumed until it reached its end must have the weights and the log of one left alone.
Runs where processes fork, for a child that has everything imported can be killed in its first second of work.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would not survive the fork

import torch
from conftest import FABLES
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import finetune_gpt2
import gpt2tg.training.finetune  # noqa: F401  imported once, here
from gpt2tg.checkpoint.runs import saved_checkpoints
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.model.new_tokenizer import train_tokenizer, transformers_tokenizer
from gpt2tg.training.output.directory import STATE_FILES
from gpt2tg.training.output.durable import UNFINISHED, damage

SETTINGS = (
    "--save_steps 3 --save_total_limit 2 --logging_steps 4 --eval_steps 7 --sample_steps 10 --num_samples 1 "
    "--block_size 16 --batch_size 2 --gradient_accumulation_steps 2 --learning_rate 1e-3 --dropout 0.2"
)

# How a run that a signal ended exits, beside 0 where it was at its end anyway; -15 before the script begins.
EXIT_CODES = {signal.SIGKILL: (-9,), signal.SIGINT: (130,), signal.SIGTERM: (143, -15)}


def main() -> int:
    """Kill and resume until there were enough kills; returns the number of things that went wrong."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--kills", type=int, default=60)
    flags.add_argument("--steps", type=int, default=30, help="of each run")
    flags.add_argument("--seed", type=int, default=None)
    given = flags.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    torch.set_num_threads(1)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        faults = Experiment(Path(name), random.Random(seed), given.steps).run(given.kills, seed)
        if faults:
            print(f"kept to look at: {shutil.copytree(name, f'{name}-faulty')}", file=sys.stderr)
        return faults


class Experiment:
    """Runs in a directory of their own, next to one that nobody kills."""

    def __init__(self, directory: Path, chance: random.Random, steps: int) -> None:
        self._directory = directory
        self._steps = steps
        self._chance = chance
        self._counts: collections.Counter[str] = collections.Counter()
        self._faults: list[str] = []
        os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        self._words = self._prepare()

    def _prepare(self) -> list[str]:
        text = self._directory / "text.txt"
        text.write_text("\n".join(FABLES) + "\n", encoding="utf-8")
        source, _ = plan_sources(TrainingOptions(train_file=str(text), validation_split=0))
        tokenizer = train_tokenizer(source, 300)
        torch.manual_seed(0)
        shape = dict(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        config = GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(self._directory / "model")
        transformers_tokenizer(tokenizer, 64).save_pretrained(self._directory / "model")
        model = str(self._directory / "model")
        return ["--train_file", str(text), "--model_name", model, "--max_steps", str(self._steps), *SETTINGS.split()]

    def run(self, kills: int, seed: int) -> int:
        straight, rounds = self._directory / "straight", 0
        self._train(self._directory / "first", None, None)  # compiles kernels and fills caches, which no later run does
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._expect(self._train(straight, None, None) == 0, "the run that nobody killed failed")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        whole_run = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime  # seconds, of one thread
        while self._kills() < kills and not self._faults:
            rounds += 1
            self._round(self._directory / f"round-{rounds}", straight, whole_run, kills)
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self._counts.items()))
        print(f"seed {seed}: {self._kills()} kills in {rounds} runs ({counts}); faults: {self._faults or 'none'}")
        return len(self._faults)

    def _kills(self) -> int:
        return sum(number for name, number in self._counts.items() if name.startswith("SIG"))

    def _round(self, out: Path, straight: Path, whole_run: float, kills: int) -> None:
        """One run, killed again and again until it is at its end."""
        saved = False
        while not self._faults:
            number = self._chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            after = self._chance.uniform(0.0, whole_run) if self._kills() < kills else None
            code = self._train(out, number, after, resumes=saved)
            if code == 0:
                break
            self._counts[number.name] += 1
            print(f"{self._kills()}: {number.name} after {after or 0:.2f} s", file=sys.stderr, flush=True)
            self._check(out, number, code, saved)
            saved = bool(saved_checkpoints(out)) if out.is_dir() else False
            if not saved and out.is_dir():  # nothing to resume: the next begins anew
                self._counts["before the first save"] += 1
        self._expect(log_of(out) == log_of(straight), f"{out.name}: the log is another")
        for name in ("model.safetensors", f"checkpoint-{self._steps}/model.safetensors", "samples.md"):
            is_there = (out / name).is_file()
            self._expect(is_there, f"{out.name}: {name} is missing among {sorted(path.name for path in out.iterdir())}")
            is_same = is_there and (out / name).read_bytes() == (straight / name).read_bytes()
            self._expect(is_same, f"{out.name}: {name} is another")

    def _train(self, out: Path, number: signal.Signals | None, after: float | None, resumes: bool = False) -> int:
        """The exit code of a run in a process of its own, killed so many seconds after its start."""
        words = [*self._words, "--output_dir", str(out)]
        words += ["--resume"] if resumes else ["--overwrite"] if (out / "run.json").exists() else []
        talk = self._directory / "stderr.txt"
        talk.write_text("")
        # Held back until the child can end by itself alone: unwound further, it would tidy up this process's directory.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        child = os.fork()
        if child == 0:
            code = 130  # of a Ctrl-C that comes before the script begins
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                sys.stderr = talk.open("w")
                os.dup2(sys.stderr.fileno(), 2)
                code = finetune_gpt2.main(words)
            finally:
                sys.stderr.flush()
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if after is not None and number is not None:
            time.sleep(after)
            if (out / UNFINISHED).exists():
                self._counts["while saving"] += 1
            os.kill(child, number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _check(self, out: Path, number: signal.Signals, code: int, saved: bool) -> None:
        """What must hold at any instant."""
        told = (self._directory / "stderr.txt").read_text(errors="replace")
        self._expect(code in EXIT_CODES[number], f"{number.name} ended in exit code {code}: {told[-500:]}")
        self._expect("Traceback" not in told, f"a traceback: {told[-1500:]}")
        found = saved_checkpoints(out) if out.is_dir() else []
        self._expect(bool(found) or not saved, f"{number.name} left no checkpoint")
        for checkpoint in found:
            wrong = damage(checkpoint.path, (*STATE_FILES, "rng_state.pth"))
            self._expect(wrong is None, f"{number.name} left a broken {checkpoint.path.name}: {wrong}")
        if (out / "model.safetensors").exists():
            load_file(out / "model.safetensors")
        if said := re.search(r"^step (\d+) of \d+ is saved in .*", told, re.MULTILINE):
            self._counts["saved on the signal"] += 1
            self._expect(found[-1].step == int(said[1]) and "go on with: " in told, f"not as said: {told[-500:]}")

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self._faults.append(fault)


def log_of(out: Path) -> list[str]:
    """The lines of the log without the columns that depend on the clock: tokens per second, seconds, memory."""
    return [line.rsplit(",", 3)[0] for line in (out / "training_log.csv").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(min(main(), 1))
