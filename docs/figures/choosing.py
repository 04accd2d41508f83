"""Draw the plots of docs/choosing-a-strategy.md. Run the first commands of that page before:

python docs/figures/choosing.py fables_model held_out.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, nothing installed

from gpt2tg import DecodingOptions, load
from gpt2tg.comparison.reference import prepare_human_text
from gpt2tg.comparison.report import plot_distances, plot_probabilities
from gpt2tg.comparison.results import Comparison, compare_strategies
from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.comparison.table import terminal_table
from gpt2tg.generation.generator import Generator
from gpt2tg.reading import examples_of, read_text
from gpt2tg.tuning.heat_map import heat_map
from gpt2tg.tuning.search import tune_settings
from gpt2tg.tuning.summary import summary

HERE = Path(__file__).resolve().parent

# The documentation may be shown on a light or a dark page, so the plots bring their own background.
LIGHT = {
    "ink": "#22211f", "faint": "#6d6a63", "rule": "#e2ded5", "paper": "#fcfbf8", "machine": "#2b6777",
    "human": "#b4552d",
}  # fmt: skip

NEW_TOKENS, SEED, BUDGET = 40, 1, 150.0


def save(name: str, drawings: str) -> None:
    """Write the wide drawing to a file of its own."""
    svg = drawings[: drawings.index("</svg>") + len("</svg>")]
    for variable, colour in LIGHT.items():
        svg = svg.replace(f"var(--{variable})", colour)
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f'style="background: {LIGHT["paper"]}; font-family: sans-serif"'
    (HERE / name).write_text(svg.replace("<svg ", f"<svg {namespaces} {style} ", 1) + "\n", encoding="utf-8")


def long_texts(model: Generator, reference: str) -> Comparison:
    """Compare texts that are long enough to repeat themselves with the fables as one text."""
    base = DecodingOptions(seed=SEED, max_new_tokens=160, num_sequences=1, suppress_eos=True)
    human = prepare_human_text(model, examples_of(read_text(Path(reference), "reference"), "file"), base, (), 1)
    return compare_strategies(model, human.prompts, parse_strategies(base, "beam,sample:temperature=1", print), human)


def main(name: str, reference: str) -> None:
    """Compare strategies on held-out text, tune settings on it, and draw the plots."""
    model = load(name)
    examples = examples_of(read_text(Path(reference), "reference"), "line")
    base = DecodingOptions(seed=SEED, max_new_tokens=NEW_TOKENS, num_sequences=1)
    human = prepare_human_text(model, examples, base, (), 32)
    found = compare_strategies(model, human.prompts, parse_strategies(base, None, print), human, batch_size=32)
    print(terminal_table(found, 80))
    save("distance.svg", str(plot_distances(found)))
    save("probability.svg", str(plot_probabilities(model, long_texts(model, reference))))
    tuning = tune_settings(model, examples, base, 128, BUDGET, 64, print)
    print(summary(tuning.check))
    best = tuning.check.tuned.options
    marked = (best.temperature, best.effective_top_p or 1.0)
    save("heat.svg", str(heat_map(tuning.cells, marked)))


if __name__ == "__main__":
    main(*sys.argv[1:])
