"""Measure tokens per second of gpt2tg and its rivals, each in a process of its own, taking turns in one run.

    python benchmarks/decode.py                                  # everything: hours
    python benchmarks/decode.py --quick                          # a first look: minutes
    python benchmarks/decode.py --rivals gpt2tg transformers-eager --work greedy-1 beam-5 --shape gpt2

Models have random weights (see formats.py), and end-of-text is off, so that all generate the same number of tokens. A
figure is the median of several turns, after a warm-up turn. Timed is the call from prompt ids to new ids, prefill
included. Prompt lookup runs on the bundled model, which is trained. Tables go to stderr, JSON to the last line of
stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path

import formats
import machine
from agreement import agreement
from rivals import ENTRIES, Job, missing, precisions_of_ours
from workers import Team, report, spread


@dataclass(frozen=True)
class Work:
    """A row of the tables: how many texts are generated, how, and from how many prompts."""

    kind: str
    rows: int = 1
    only_prompt: bool = False
    """Whether one new token is enough, because the prefill is measured."""


WORKS = {
    "greedy-1": Work("greedy"),
    "greedy-8": Work("greedy", 8),
    "greedy-32": Work("greedy", 32),
    "beam-5": Work("beam"),
    "top_p-1": Work("top_p"),
    "prefill": Work("greedy", only_prompt=True),
    "lookup": Work("greedy"),
}
PROMPTS = (16, 512)
REFERENCE = "transformers-eager"
LOOKUP_PROMPT, LOOKUP_TOKENS = "Once upon a time", 200


def prompts(rows: int, tokens: int, repeat: int = 0) -> list[list[int]]:
    """Return random ids without the end-of-text token, the same in each run."""
    draw = random.Random(f"{tokens}/{repeat}")
    return [[draw.randrange(1, formats.VOCABULARY) for _ in range(tokens)] for _ in range(rows)]


def main() -> None:
    """Measure, print tables and the JSON."""
    options = parse()
    options.cache.mkdir(parents=True, exist_ok=True)
    names = chosen_rivals(options.rivals)
    results, idle, foreign = [], 0.0, 0.0
    report("reading 1 GiB of memory, all cores ...")
    bandwidth = [machine.read_bandwidth(options.threads)]
    works = [name for name in options.work if name != "lookup"]
    for shape in options.shape if works else ():
        formats.checkpoint(shape, options.cache)
        with Team(names, shape, options.cache, options.threads) as team:
            for tokens in options.prompt:
                for name in works:
                    if not WORKS[name].only_prompt or tokens == max(options.prompt):
                        results.append(measure(team, name, shape, tokens, options))
        idle, foreign = max(idle, team.idle_share), max(foreign, team.foreign_share)
        bandwidth.append(machine.read_bandwidth(options.threads))
    if "lookup" in options.work:
        results += lookup(options)
    bandwidth_gb = max(bandwidth) / 1e9
    report(f"\nmemory is read at {bandwidth_gb:.1f} GB/s")
    report(f"during a run, waiting rivals computed at most {idle:.0%} of a core, other programs {foreign:.0%}")
    told = {
        "machine": machine.description(),
        "threads": options.threads,
        "bandwidth_gb_per_second": bandwidth_gb,
        "repeats": options.repeats,
        "most_computed_by_waiting_rivals": idle,
        "most_computed_by_others": foreign,
        "results": results,
    }
    print(json.dumps(told))


def parse() -> argparse.Namespace:
    """Parse the command line, and apply `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="+", metavar="NAME", help=f"names or their beginnings: {', '.join(ENTRIES)}")
    parser.add_argument("--work", nargs="+", choices=WORKS, help="what to measure (default: all)")
    parser.add_argument("--shape", nargs="+", choices=formats.SHAPES, help="(default: all)")
    parser.add_argument("--prompt", nargs="+", type=int, metavar="N", help="tokens of the prompts (default: 16 512)")
    parser.add_argument("--new_tokens", type=int, help="(default: 128)")
    parser.add_argument("--repeats", type=int, help="counted runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="(default: the physical cores)")
    parser.add_argument("--cache", type=Path, default=formats.CACHE, help=f"models are kept here ({formats.CACHE})")
    parser.add_argument("--quick", action="store_true", help="gpt2's shape, short texts, two runs of each")
    options = parser.parse_args()
    whole = dict(work=list(WORKS), shape=list(formats.SHAPES), prompt=list(PROMPTS), new_tokens=128, repeats=5)
    quick = dict(work=["greedy-1", "greedy-8", "beam-5"], shape=["gpt2"], prompt=[16], new_tokens=32, repeats=2)
    for name, default in (quick if options.quick else whole).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def chosen_rivals(beginnings: list[str] | None) -> list[str]:
    """Return the rivals whose names begin like this and that are installed; print why others are not."""
    names = [name for name in ENTRIES if not beginnings or name.startswith(tuple(beginnings))]
    for name in names:
        if why := missing(name):
            report(f"{name} is left out: {why}")
    return [name for name in names if not missing(name)]


def measure(team: Team, name: str, shape: str, tokens: int, options: argparse.Namespace) -> dict:
    """Measure one table: every rival at one kind of work."""
    work = WORKS[name]
    new = 1 if work.only_prompt else options.new_tokens
    table = {"shape": shape, "work": name, "prompt": tokens, "new_tokens": new, "rows": work.rows}
    report(f"\n{shape}, {name}, prompts of {tokens} tokens, {new} new ones")
    answers = team.race(
        lambda repeat: Job(work.kind, prompts(work.rows, tokens, repeat), new, lookup=0), options.repeats
    )
    reference = answers.get(REFERENCE)
    # A drawn text depends on the random number generator; all other texts must equal those of transformers.
    expected = texts_of(reference) if reference and work.kind != "top_p" else None
    counted = work.rows * (tokens if work.only_prompt else new)
    table["rivals"] = {
        rival: figures(answer, counted, expected, reference, read_bytes(rival, shape) if name == "greedy-1" else None)
        for rival, answer in answers.items()
    }
    show(table["rivals"])
    return table


def figures(
    answers: list[dict], tokens: int, expected: list | None, reference: list[dict] | None, read: float | None
) -> dict:
    """Return speed and spread, the ratio to the reference, how many texts agree with it, and bytes read per second."""
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
    if read:
        found["gb_per_second"] = read * tokens / seconds["median"] / 1e9
    return found


def texts_of(answers: list[dict]) -> list[list[int]]:
    """Return all texts of all repetitions."""
    return [text for answer in answers for text in answer["result"]]


def read_bytes(rival: str, shape: str) -> float:
    """Return the bytes read per token: every matrix once, without position embeddings and KV cache."""
    sizes = formats.SHAPES[shape]
    weights = sizes["n_embd"] * (formats.VOCABULARY + 12 * sizes["n_layer"] * sizes["n_embd"])
    return weights * ENTRIES[rival].bytes_per_weight


def show(rivals: dict[str, dict], reference: str = "transformers") -> None:
    """Return the table as text."""
    for name, found in rivals.items():
        speed = found["tokens_per_second"]
        line = f"{name:>26} {speed['median']:8.1f} tokens/s ({speed['min']:.1f} to {speed['max']:.1f})"
        if "times_reference" in found:
            line += f"  {found['times_reference']:5.2f} x {reference}"
        if "gb_per_second" in found:
            line += f"  {found['gb_per_second']:5.1f} GB/s"
        if "texts" in found:
            line += f"  ids equal {found['equal_texts']} of {found['texts']}"
            if found["first_difference"] is not None:
                line += f", first difference at token {found['first_difference']}"
        report(line)


def lookup(options: argparse.Namespace) -> list[dict]:
    """Compare prompt lookup with plain greedy decoding on the bundled model, on repetitive text and on other text."""
    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
    from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
    from gpt2tg.options import DecodingOptions

    if "prompt_lookup" not in {field.name for field in dataclasses.fields(DecodingOptions)}:
        report("\nprompt lookup is left out: this version has none")
        return []
    prompt = load_tokenizer(BUNDLED_DIRECTORY, formats.VOCABULARY, None).encode(LOOKUP_PROMPT)
    names = [f"gpt2tg-{precision}" for precision in precisions_of_ours() or ("fp32",)]
    tables = []
    with Team(names[:1], "gpt2-tiny", options.cache, options.threads) as team:
        for title, ngram in (("free to repeat itself", 0), ("no three tokens twice", 3)):
            report(f"\ngpt2-tiny, greedy, {LOOKUP_TOKENS} new tokens, prompt lookup, {title}")
            jobs = [Job("greedy", [prompt], LOOKUP_TOKENS, size, ngram) for size in (0, None)]
            turns = team.race(lambda repeat, jobs=jobs: jobs[repeat % 2], 8 * options.repeats)
            (runs,) = turns.values()
            answers = {"plain greedy": runs[::2], "with lookup": runs[1::2]}
            plain = answers["plain greedy"]
            table = {
                "shape": "gpt2-tiny",
                "work": "lookup",
                "prompt": len(prompt),
                "text": title,
                "new_tokens": LOOKUP_TOKENS,
            }
            table["rivals"] = {
                how: figures(found, LOOKUP_TOKENS, texts_of(plain), plain, None) for how, found in answers.items()
            }
            show(table["rivals"], "plain greedy")
            tables.append(table)
    return tables


if __name__ == "__main__":
    main()
