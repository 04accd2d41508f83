"""The pictures of docs/choosing-a-strategy.md, after its first commands:

python docs/figures/choosing.py fables_model held_out.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, nothing installed

from gpt2tg import DecodingOptions, load
from gpt2tg.comparison.compare import Comparison, compare, human_text
from gpt2tg.comparison.plots import heat_map
from gpt2tg.comparison.report import distances, probabilities
from gpt2tg.comparison.strategies import strategies_to_compare
from gpt2tg.comparison.table import terminal_table
from gpt2tg.generation.generator import Generator
from gpt2tg.reading import examples_of, read_text
from gpt2tg.tuning.tune import summary, tune

HERE = Path(__file__).resolve().parent

# The page of the documentation is light or dark as its reader has it: a picture brings its own paper.
LIGHT = {
    "ink": "#22211f", "faint": "#6d6a63", "rule": "#e2ded5", "paper": "#fcfbf8", "machine": "#2b6777",
    "human": "#b4552d",
}  # fmt: skip

NEW_TOKENS, SEED, BUDGET = 40, 1, 150.0


def save(name: str, drawings: str) -> None:
    """The wide one of both drawings as a file of its own."""
    svg = drawings[: drawings.index("</svg>") + len("</svg>")]
    for variable, colour in LIGHT.items():
        svg = svg.replace(f"var(--{variable})", colour)
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f'style="background: {LIGHT["paper"]}; font-family: sans-serif"'
    (HERE / name).write_text(svg.replace("<svg ", f"<svg {namespaces} {style} ", 1) + "\n", encoding="utf-8")


def long_texts(model: Generator, reference: str) -> Comparison:
    """Texts long enough to repeat themselves, beside one fable after the other."""
    base = DecodingOptions(seed=SEED, max_new_tokens=160, num_sequences=1, suppress_eos=True)
    human = human_text(model, examples_of(read_text(Path(reference), "reference"), "file"), base, (), 1)
    return compare(model, human.prompts, strategies_to_compare(base, "beam,sample:temperature=1", print), human)


def main(name: str, reference: str) -> None:
    """Compare the strategies of a model on a text that it has not learned from, and search settings for it."""
    model = load(name)
    examples = examples_of(read_text(Path(reference), "reference"), "line")
    base = DecodingOptions(seed=SEED, max_new_tokens=NEW_TOKENS, num_sequences=1)
    human = human_text(model, examples, base, (), 32)
    found = compare(model, human.prompts, strategies_to_compare(base, None, print), human, batch_size=32)
    print(terminal_table(found, 80))
    save("distance.svg", str(distances(found)))
    save("probability.svg", str(probabilities(model, long_texts(model, reference))))
    search = tune(model, examples, base, 128, BUDGET, 64, print)
    print(summary(search.end))
    best = search.end.tuned.options
    marked = (best.temperature, best.effective_top_p or 1.0)
    save("heat.svg", str(heat_map(search.cells, ("temperature", "top-p"), marked)))


if __name__ == "__main__":
    main(*sys.argv[1:])
