"""Measure milliseconds per token against the length of the context, the number of rows and the size of the model.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rivals gpt2tg transformers-eager --repeats 3

Each figure is the median over the decode steps of several turns, without prefill. Random weights, and rivals in
processes of their own, as in decode.py. Tables go to stderr, and the results to a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import formats
import machine
import results
from decode import chosen_rivals, prompts
from jobs import Job
from workers import Team, report, spread

CONTEXTS = (50, 250, 500, 750, 1000)
ROWS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = ("gpt2-tiny", "gpt2", "gpt2-medium")
DEFAULT_RIVALS = ["gpt2tg", "transformers-eager"]
PLAIN = dict(shape="gpt2", context=50, rows=1)


def plan(shapes: list[str]) -> list[dict]:
    """Return the cases: in each, one of the three changes, and the others stay as in PLAIN."""
    cases = [PLAIN | dict(context=context) for context in CONTEXTS]
    cases += [PLAIN | dict(rows=rows) for rows in ROWS]
    cases += [PLAIN | dict(shape=shape) for shape in SHAPES]
    return [case for number, case in enumerate(cases) if case["shape"] in shapes and case not in cases[:number]]


def main() -> None:
    """Measure, print tables and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="+", metavar="NAME", default=DEFAULT_RIVALS, help="(default: %(default)s)")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES), help="(default: all)")
    parser.add_argument("--steps", type=int, default=16, help="tokens timed in each repetition (default: 16)")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="(default: the physical cores)")
    parser.add_argument("--cache", type=Path, default=formats.CACHE, help=f"models are kept here ({formats.CACHE})")
    output = results.FOLDER / "scaling.json"
    parser.add_argument("--output", type=Path, default=output, help="the file of results (default: %(default)s)")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    names, cases = chosen_rivals(options.rivals), plan(options.shape)
    measured, foreign = [], 0.0
    for shape in options.shape:
        formats.checkpoint(shape, options.cache)
        with Team(names, shape, options.cache, options.threads) as team:
            for case in (case for case in cases if case["shape"] == shape):
                measured.append(case | {"rivals": measure(team, case, options)})
        foreign = max(foreign, team.foreign_share)
    told = {
        "machine": machine.description(),
        "threads": options.threads,
        "repeats": options.repeats,
        "most_computed_by_others": foreign,
        "results": measured,
    }
    results.save(told, options.output)
    report(f"written to {options.output}")


def measure(team: Team, case: dict, options: argparse.Namespace) -> dict[str, dict]:
    """Measure one case: milliseconds of a step of all rows, by rival."""
    report(f"\n{case['shape']}, {case['rows']} rows, {case['context']} tokens of context")
    vocabulary = 1000 if case["shape"] == "gpt2-tiny" else formats.VOCABULARY
    context = min(case["context"], formats.positions(case["shape"], options.cache) - options.steps)

    def job(repeat: int) -> Job:
        texts = [[token % vocabulary for token in row] for row in prompts(case["rows"], context, repeat)]
        return Job("steps", texts, options.steps)

    found = {}
    for name, answers in team.race(job, options.repeats)[0].items():
        found[name] = {"milliseconds": spread([1000 * step for answer in answers for step in answer["result"]])}
        middle = found[name]["milliseconds"]["median"]
        report(f"{name:>26} {middle:8.2f} ms a step, {middle / case['rows']:.2f} ms a token")
    return found


if __name__ == "__main__":
    main()
