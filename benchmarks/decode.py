"""Measure tokens per second of gpt2tg and its rivals, each in a process of its own, taking turns in one run.

    python benchmarks/decode.py                # all rivals, gpt2 and gpt2-medium: 25 to 60 minutes
    python benchmarks/decode.py --company      # quiet, and beside a busy program: 10 to 20 minutes
    python benchmarks/decode.py --quick        # a first look: about 3 minutes
    python benchmarks/decode.py --rivals gpt2tg transformers-eager --work greedy-1 --shape gpt2 --output mine.json

Models have random weights (see formats.py), and end-of-text is off, so that all generate the same number of tokens. A
figure is the median of several turns, after a warm-up turn. Timed is the call from prompt ids to new ids, prefill
included. Prompt lookup runs on the bundled model, which is trained. Tables go to stderr. The file of results is written
after each table; the same command goes on where an interrupted run stopped.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import formats
import machine
import results
from agreement import agreement
from jobs import Job
from rivals import ABSENT, ENTRIES, SLOWER_LIBRARIES, missing
from workers import Team, report, spread


@dataclass(frozen=True)
class Work:
    """A column of the tables: how many texts are generated, how, and from prompts of which lengths."""

    kind: str
    rows: int = 1
    new_tokens: int = 32
    """One if the prefill is measured."""
    prompts: tuple[int, ...] = (16,)


WORKS = {
    "greedy-1": Work("greedy", prompts=(16, 512)),
    "greedy-8": Work("greedy", 8),
    "greedy-32": Work("greedy", 32, 16),
    "beam-5": Work("beam"),
    "top_p-1": Work("top_p"),
    "prefill": Work("greedy", 1, 1, (512,)),
}
LOOKUP = "lookup"
SHARE_OF_TOKENS = {"gpt2-medium": 2}
"""A shape whose tokens take so many times as long generates so many times fewer."""
COMPANY_WORKS = ("greedy-1", "greedy-8")
REFERENCE = "transformers-eager"
LOOKUP_PROMPT, LOOKUP_TOKENS = "Once upon a time", 200


def prompts(rows: int, tokens: int, repeat: int = 0) -> list[list[int]]:
    """Return random ids without the end-of-text token, the same in each run."""
    draw = random.Random(f"{tokens}/{repeat}")
    return [[draw.randrange(1, formats.VOCABULARY) for _ in range(tokens)] for _ in range(rows)]


def main() -> None:
    """Measure, print tables, and write the results."""
    options = parse()
    options.cache.mkdir(parents=True, exist_ok=True)
    names = chosen_rivals(options.rivals)
    told = results.begin(options.output, describe(options, names), options.overwrite)
    for shape in options.shape:
        measure_shape(shape, names, options, told)
    if LOOKUP in options.work and not any(table["work"] == LOOKUP for table in told["results"]):
        told["results"] += lookup(options)
        results.save(told, options.output)
    report(f"\nmemory is read at {told['bandwidth_gb_per_second']:.1f} GB/s")
    report(
        f"during a run, waiting rivals computed at most {told['most_computed_by_waiting_rivals']:.0%} of a core, "
        f"other programs {told['most_computed_by_others']:.0%}; written to {options.output}"
    )


def parse() -> argparse.Namespace:
    """Parse the command line, and apply `--quick` and `--company`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="+", metavar="NAME", help=f"names or their beginnings: {', '.join(ENTRIES)}")
    parser.add_argument("--work", nargs="+", choices=[*WORKS, LOOKUP], help="what to measure (default: all)")
    parser.add_argument("--shape", nargs="+", choices=formats.SHAPES, help="(default: all; with --company, gpt2)")
    parser.add_argument("--prompt", nargs="+", type=int, metavar="N", help="tokens of the prompts (default: by work)")
    parser.add_argument("--new_tokens", type=int, help="(default: by work and shape)")
    parser.add_argument("--repeats", type=int, help="counted runs of each (default: 3)")
    parser.add_argument("--company", action="store_true", help="measure what stays beside a program that uses a core")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="(default: the physical cores)")
    parser.add_argument("--cache", type=Path, default=formats.CACHE, help=f"models are kept here ({formats.CACHE})")
    parser.add_argument("--quick", action="store_true", help="gpt2's shape, 8 new tokens, one run of each")
    parser.add_argument("--output", type=Path, help="the file of results (default: in benchmarks/results)")
    parser.add_argument("--overwrite", action="store_true", help="measure again what the file of results holds")
    options = parser.parse_args()
    name = f"decode{'-company' * options.company}{'-quick' * options.quick}.json"
    default = dict(work=[*WORKS, LOOKUP], shape=list(formats.SHAPES), repeats=3, output=results.FOLDER / name)
    if options.company:
        default |= dict(work=list(COMPANY_WORKS), shape=["gpt2"], prompt=[16])
    if options.quick:
        default |= dict(shape=["gpt2"], new_tokens=8, prompt=[16], repeats=1)
        default |= {} if options.company else dict(work=["greedy-1", "greedy-8", "beam-5"])
    for key, value in default.items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    return options


def chosen_rivals(beginnings: list[str] | None) -> list[str]:
    """Return the rivals whose names begin like this and that are installed; print why others are not."""
    names = [name for name in ENTRIES if not beginnings or name.startswith(tuple(beginnings))]
    for name in names:
        if why := missing(name):
            report(f"{name} is left out: {why}")
    for name, why in ABSENT.items():
        report(f"{name} is left out: {why}")
    left_out = () if beginnings else SLOWER_LIBRARIES
    return [name for name in names if not missing(name) and name not in left_out]


def describe(options: argparse.Namespace, names: list[str]) -> dict:
    """Return what describes a run: the machine, its limits, what is measured."""
    run = {key: getattr(options, key) for key in ("threads", "repeats", "company", "new_tokens", "prompt")}
    return {
        "run": {**run, "rivals": names},
        "machine": machine.description(),
        "bandwidth_gb_per_second": 0.0,
        "gflops": {},
        "most_computed_by_waiting_rivals": 0.0,
        "most_computed_by_others": 0.0,
        "rivals": {
            name: {"bytes_per_weight": ENTRIES[name].bytes_per_weight, "products": ENTRIES[name].products}
            for name in names
        },
    }


def measure_shape(shape: str, names: list[str], options: argparse.Namespace, told: dict) -> None:
    """Measure the tables of a shape that the results lack, and save them after each."""
    done = {(table["shape"], table["work"], table["prompt"]) for table in told["results"]}
    cases = [
        (name, tokens)
        for name in options.work
        if name != LOOKUP
        for tokens in options.prompt or WORKS[name].prompts
        if (shape, name, tokens) not in done
    ]
    if not cases:
        report(f"{shape}: nothing left to measure; --overwrite measures again")
        return
    measure_limits(told, options.threads)
    formats.checkpoint(shape, options.cache)
    with Team(names, shape, options.cache, options.threads) as team:
        for name, tokens in cases:
            told["results"].append(measure(team, name, shape, tokens, options))
            for key, share in (("waiting_rivals", team.idle_share), ("others", team.foreign_share)):
                told[f"most_computed_by_{key}"] = max(told[f"most_computed_by_{key}"], share)
            results.save(told, options.output)
    measure_limits(told, options.threads)
    results.save(told, options.output)


def measure_limits(told: dict, threads: int) -> None:
    """Measure memory and arithmetic; the best of several measurements counts."""
    report("measuring the memory bandwidth and the arithmetic ...")
    told["bandwidth_gb_per_second"] = max(told["bandwidth_gb_per_second"], machine.read_bandwidth(threads) / 1e9)
    for name, found in machine.processor_operations(threads).items():
        told["gflops"][name] = max(told["gflops"].get(name, 0), found / 1e9)


def measure(team: Team, name: str, shape: str, tokens: int, options: argparse.Namespace) -> dict:
    """Measure one table: every rival at one kind of work."""
    work = WORKS[name]
    new = options.new_tokens if options.new_tokens and work.new_tokens > 1 else work.new_tokens
    if not options.new_tokens:
        new = max(1, new // SHARE_OF_TOKENS.get(shape, 1))
    table = {"shape": shape, "work": name, "prompt": tokens, "new_tokens": new, "rows": work.rows}
    report(f"\n{shape}, {name}, prompts of {tokens} tokens, {new} new ones")
    # With company, each repetition is run twice, first in quiet. Prompts differ, since some rivals remember the last.
    turns = 2 if options.company else 1
    answers, reasons = team.race(
        lambda repeat: Job(work.kind, prompts(work.rows, tokens, repeat), new, lookup=0),
        turns * options.repeats,
        lambda repeat: options.company and repeat % 2 == 1 and repeat > 0,
    )
    counted = work.rows * (tokens if new == 1 else new)
    quiet = {rival: found[::turns] for rival, found in answers.items()}
    table["rivals"] = figures_of(quiet, counted, is_drawn=work.kind == "top_p")
    for rival, found in answers.items():
        if options.company:
            beside = figures_of({rival: found[1::2]}, counted, is_drawn=True)[rival]["tokens_per_second"]
            table["rivals"][rival] |= {"with_company": beside}
    table["reasons"] = reasons
    show(table["rivals"])
    return table


def figures_of(answers: dict[str, list[dict]], counted: int, is_drawn: bool, reference: str = REFERENCE) -> dict:
    """Return the figures of each rival.

    Args:
        answers: those of each rival.
        counted: the tokens of each answer.
        is_drawn: whether texts depend on the random number generator; all others must equal those of the reference.
        reference: the rival that others are compared with, if it took part.
    """
    first = answers.get(reference)
    expected = texts_of(first) if first and not is_drawn else None
    return {rival: figures(found, counted, expected, first) for rival, found in answers.items()}


def figures(answers: list[dict], tokens: int, expected: list | None, reference: list[dict] | None) -> dict:
    """Return speed and spread, the ratio to the reference, and how many texts agree with it."""
    seconds = spread([answer["seconds"] for answer in answers])
    found = {
        "tokens_per_second": {
            "median": tokens / seconds["median"],
            "min": tokens / seconds["max"],
            "max": tokens / seconds["min"],
        }
    }
    if reference:
        found["times_reference"] = spread([other["seconds"] for other in reference])["median"] / seconds["median"]
    if expected is not None:
        found |= agreement(texts_of(answers), expected)
    return found


def texts_of(answers: list[dict]) -> list[list[int]]:
    """Return all texts of all repetitions."""
    return [text for answer in answers for text in answer["result"]]


def show(rivals: dict[str, dict], reference: str = "transformers") -> None:
    """Print the table."""
    for name, found in rivals.items():
        speed = found["tokens_per_second"]
        line = f"{name:>26} {speed['median']:8.1f} tokens/s ({speed['min']:.1f} to {speed['max']:.1f})"
        if "times_reference" in found:
            line += f"  {found['times_reference']:5.2f} x {reference}"
        if "with_company" in found:
            beside = found["with_company"]["median"]
            line += f"  beside a busy program {beside:.1f}, {beside / speed['median']:.0%}"
        if "texts" in found:
            line += f"  ids equal {found['equal_texts']} of {found['texts']}"
            if found["first_difference"] is not None:
                line += f", first difference at token {found['first_difference']}"
        report(line)


def lookup(options: argparse.Namespace) -> list[dict]:
    """Compare prompt lookup with plain greedy decoding on the bundled model, on repetitive text and on other text."""
    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
    from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer

    prompt = load_tokenizer(BUNDLED_DIRECTORY, formats.VOCABULARY, None).encode(LOOKUP_PROMPT)
    table = {"shape": "gpt2-tiny", "work": LOOKUP, "prompt": len(prompt), "new_tokens": LOOKUP_TOKENS}
    tables = []
    with Team(["gpt2tg-fp32"], "gpt2-tiny", options.cache, options.threads) as team:
        for title, ngram in (("free to repeat itself", 0), ("no three tokens twice", 3)):
            report(f"\ngpt2-tiny, greedy, {LOOKUP_TOKENS} new tokens, prompt lookup, {title}")
            jobs = [Job("greedy", [prompt], LOOKUP_TOKENS, size, ngram) for size in (0, None)]
            turns, _ = team.race(lambda repeat, jobs=jobs: jobs[repeat % 2], 8 * options.repeats)
            (runs,) = turns.values()
            halves = {"plain greedy": runs[::2], "with lookup": runs[1::2]}
            found = figures_of(halves, LOOKUP_TOKENS, is_drawn=False, reference="plain greedy")
            show(found, "plain greedy")
            tables.append({**table, "text": title, "rivals": found})
    return tables


if __name__ == "__main__":
    main()
