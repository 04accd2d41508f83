"""Kill a generation in several processes with SIGKILL at random moments, and run it again:

    python tests/batch/generation_kills.py --prompts 10000 --processes 4 --kills 5

A kill hits the whole job, one of its processes, or the launcher alone. After each, all processes must end by
themselves, and the output must hold the records that it had before, each as a single process writes it; only the last
line may be truncated. In the end, the output must equal that of a single process, byte for byte.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

SETTINGS = "--model_path gpt2-tiny --format jsonl --num_sequences 1 --max_new_tokens 16 --device cpu"

# The longest that processes may outlive a kill, and that a run may take without a new record, in seconds.
SECONDS_TO_END, SECONDS_TO_STALL = 60.0, 300.0


def main() -> int:
    """Kill and run again until there were enough kills, and return the number of faults."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--prompts", type=int, default=10_000)
    flags.add_argument("--processes", type=int, default=4)
    flags.add_argument("--kills", type=int, default=5)
    flags.add_argument("--seed", type=int, default=None)
    given = flags.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        experiment = Experiment(Path(name), random.Random(seed), given.prompts, given.processes)
        faults, counts = experiment.run(given.kills)
        kinds = ", ".join(f"{number} of {kind}" for kind, number in sorted(counts.items()))
        size = f"{given.prompts} prompts, {given.processes} processes, {given.kills} kills ({kinds})"
        print(f"seed {seed}: {size}; faults: {faults or 'none'}")
        if faults:
            print(f"kept for inspection: {shutil.copytree(name, f'{name}-faulty')}", file=sys.stderr)
    return len(faults)


class Experiment:
    """Kills runs that write the same output, and compares it with that of a single process."""

    def __init__(self, directory: Path, chance: random.Random, prompts: int, processes: int) -> None:
        self._directory, self._chance = directory, chance
        self._prompts, self._processes = prompts, processes
        self._faults: list[str] = []
        self._output = directory / "out.jsonl"
        fables = (ROOT / "sample_data.txt").read_text(encoding="utf-8").splitlines()
        beginnings = (fables[n % len(fables)].split()[: chance.randrange(1, 40)] for n in range(prompts))
        (directory / "prompts.txt").write_text("".join(" ".join(words) + "\n" for words in beginnings))

    def run(self, kills: int) -> tuple[list[str], collections.Counter[str]]:
        """Return the faults, and how often each kind of kill was made."""
        counts: collections.Counter[str] = collections.Counter()
        expected = self._undisturbed()
        before: set[bytes] = set()
        while sum(counts.values()) < kills and not self._faults:
            kind = self._chance.choice(("the whole job", "one process", "one process", "the launcher"))
            left = self._prompts - len(before)
            most = len(before) + 1.5 * left / (kills - sum(counts.values()) + 1)
            if not self._killed(kind, int(self._chance.uniform(len(before), most))):
                self._faults.append("the run ended before it was killed")
                break
            counts[kind] += 1
            before = self._check(before, expected)
            print(f"{sum(counts.values())}: {kind}, {len(before)} records", file=sys.stderr, flush=True)
        with self._start() as job:
            self._expect(job.wait() == 0, f"the last run failed: {self._told()}")
        self._expect(self._output.read_bytes() == b"".join(expected), "the output differs from that of one process")
        names = {path.name for path in self._directory.iterdir()}
        self._expect(names == {"prompts.txt", "one.jsonl", "out.jsonl", "stderr.txt"}, f"files are left: {names}")
        return self._faults, counts

    def _undisturbed(self) -> list[bytes]:
        """Return the records that a single process writes."""
        output = self._directory / "one.jsonl"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *self._words(output)], env=environment, check=True, capture_output=True)
        return output.read_bytes().splitlines(keepends=True)

    def _words(self, output: Path) -> list[str]:
        script, prompts = str(ROOT / "generate_from_finetuned.py"), str(self._directory / "prompts.txt")
        return [script, *SETTINGS.split(), "--prompts_file", prompts, "--output", str(output), "--seed", "1"]

    @contextlib.contextmanager
    def _start(self):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self._processes)]
        with (self._directory / "stderr.txt").open("wb") as stderr:
            words = [sys.executable, *launcher, *self._words(self._output)]
            job = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            yield job
        finally:
            job.kill()
            job.wait()

    def _killed(self, kind: str, records: int) -> bool:
        """Run until there are so many records, and a moment longer; kill; wait until all processes have ended."""
        with self._start() as job:
            launcher = psutil.Process(job.pid)
            since, count = time.monotonic(), -1
            while (found := self._count()) < records or len(launcher.children()) < self._processes:
                since, count = (time.monotonic(), found) if found != count else (since, count)
                if job.poll() is not None or time.monotonic() - since > SECONDS_TO_STALL:
                    self._faults.append(f"the run ended or stood still: {self._told()}")
                    return False
                time.sleep(0.02)
            time.sleep(self._chance.uniform(0.0, 0.5))
            workers = launcher.children(recursive=True)
            chosen = {"the whole job": [launcher, *workers], "the launcher": [launcher]}
            if not workers:
                return False
            for process in chosen.get(kind, [self._chance.choice(workers)]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(SECONDS_TO_END)
            _, alive = psutil.wait_procs(workers, SECONDS_TO_END)
            self._expect(not alive and job.poll() is not None, f"{len(alive)} processes outlived {kind}")
            for process in alive:
                process.kill()
        return True

    def _count(self) -> int:
        return self._output.read_bytes().count(b"\n") if self._output.exists() else 0

    def _check(self, before: set[bytes], expected: list[bytes]) -> set[bytes]:
        """Return the records that a kill has left, after checking them."""
        *lines, _ = self._output.read_bytes().split(b"\n") if self._output.exists() else [b""]
        found = {line + b"\n" for line in lines}
        self._expect(len(found) == len(lines), "a record is there twice")
        self._expect(before <= found, f"{len(before - found)} records are lost")
        wrong = [line for line in found if line != expected[json.loads(line)["prompt_index"]]]
        self._expect(not wrong, f"{len(wrong)} records are not those of one process")
        return found

    def _told(self) -> str:
        return (self._directory / "stderr.txt").read_text(errors="replace")[-1500:]

    def _expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self._faults.append(fault)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
