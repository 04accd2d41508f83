"""Kill training runs with real signals at random moments, and resume them: python tests/training/kills.py --kills 60

After each kill, every checkpoint-N must be intact, and there must be one if there was one before. A run that was killed
and resumed until its end must have the weights and the log of an undisturbed run. The runs are forked from a process
that has imported everything, so that a kill can hit the first second of work.
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
from gpt2tg.training.output.durable import UNFINISHED, find_damage
from gpt2tg.training.output.layout import STATE_FILES

SETTINGS = (
    "--save_steps 3 --save_total_limit 2 --logging_steps 4 --eval_steps 7 --sample_steps 10 --num_samples 1 "
    "--block_size 16 --batch_size 2 --gradient_accumulation_steps 2 --learning_rate 1e-3 --dropout 0.2"
)

# The exit codes of a run that a signal ended, besides 0 if it had finished; -15 before the script starts.
EXIT_CODES = {signal.SIGKILL: (-9,), signal.SIGINT: (130,), signal.SIGTERM: (143, -15)}


def main() -> int:
    """Kill and resume until there were enough kills, and return the number of faults."""
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
            print(f"kept for inspection: {shutil.copytree(name, f'{name}-faulty')}", file=sys.stderr)
        return faults


class Experiment:
    """Kills runs in directories of their own, and compares them with an undisturbed run."""

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
        undisturbed, rounds = self._directory / "undisturbed", 0
        self._train(self._directory / "first", None, None)  # later runs neither compile kernels nor fill caches
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._expect(self._train(undisturbed, None, None) == 0, "the undisturbed run failed")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime  # seconds, of one thread
        while self._kills() < kills and not self._faults:
            rounds += 1
            self._round(self._directory / f"round-{rounds}", undisturbed, run_seconds, kills)
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self._counts.items()))
        print(f"seed {seed}: {self._kills()} kills in {rounds} runs ({counts}); faults: {self._faults or 'none'}")
        return len(self._faults)

    def _kills(self) -> int:
        return sum(number for name, number in self._counts.items() if name.startswith("SIG"))

    def _round(self, out: Path, undisturbed: Path, run_seconds: float, kills: int) -> None:
        """Kill and resume one run until it ends."""
        saved = False
        while not self._faults:
            number = self._chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            after = self._chance.uniform(0.0, run_seconds) if self._kills() < kills else None
            code = self._train(out, number, after, resumes=saved)
            if code == 0:
                break
            self._counts[number.name] += 1
            print(f"{self._kills()}: {number.name} after {after or 0:.2f} s", file=sys.stderr, flush=True)
            self._check(out, number, code, saved)
            saved = bool(saved_checkpoints(out)) if out.is_dir() else False
            if not saved and out.is_dir():  # nothing to resume: the next begins anew
                self._counts["before the first save"] += 1
        self._expect(log_of(out) == log_of(undisturbed), f"{out.name}: the log differs")
        for name in ("model.safetensors", f"checkpoint-{self._steps}/model.safetensors", "samples.md"):
            is_there = (out / name).is_file()
            self._expect(is_there, f"{out.name}: {name} is missing among {sorted(path.name for path in out.iterdir())}")
            is_same = is_there and (out / name).read_bytes() == (undisturbed / name).read_bytes()
            self._expect(is_same, f"{out.name}: {name} differs")

    def _train(self, out: Path, number: signal.Signals | None, after: float | None, resumes: bool = False) -> int:
        """Return the exit code of a run in a child process, killed so many seconds after its start."""
        words = [*self._words, "--output_dir", str(out)]
        words += ["--resume"] if resumes else ["--overwrite"] if (out / "run.json").exists() else []
        talk = self._directory / "stderr.txt"
        talk.write_text("")
        # Blocked until the child handles them: an exception further up would make it clean up this process's directory.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        child = os.fork()
        if child == 0:
            code = 130  # of a Ctrl-C before the script starts
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
        """Check what must hold after every kill."""
        told = (self._directory / "stderr.txt").read_text(errors="replace")
        self._expect(code in EXIT_CODES[number], f"{number.name} ended in exit code {code}: {told[-500:]}")
        self._expect("Traceback" not in told, f"a traceback: {told[-1500:]}")
        found = saved_checkpoints(out) if out.is_dir() else []
        self._expect(bool(found) or not saved, f"{number.name} left no checkpoint")
        for checkpoint in found:
            wrong = find_damage(checkpoint.path, (*STATE_FILES, "rng_state.pth"))
            self._expect(wrong is None, f"{number.name} left a broken {checkpoint.path.name}: {wrong}")
        if (out / "model.safetensors").exists():
            load_file(out / "model.safetensors")
        if said := re.search(r"^step (\d+) of \d+ is saved in .*", told, re.MULTILINE):
            self._counts["saved on the signal"] += 1
            self._expect(found[-1].step == int(said[1]) and "to resume, " in told, f"not as printed: {told[-500:]}")

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self._faults.append(fault)


def log_of(out: Path) -> list[str]:
    """Return the lines of the log without the columns that vary: tokens per second, seconds, memory."""
    return [line.rsplit(",", 3)[0] for line in (out / "training_log.csv").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(min(main(), 1))
