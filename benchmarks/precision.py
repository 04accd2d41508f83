"""Measure what fewer bits cost: perplexity on a text, and where greedy texts first differ from those of fp32.

    python benchmarks/precision.py --file held-out.txt
    python benchmarks/precision.py --file held-out.txt --model gpt2 --tokens 100000

Give a text that the model was not trained on. Its perplexity is measured in windows of the context length that slide by
half of it; the prompts of the greedy texts are taken from it at even distances. A table goes to stderr, JSON to the
last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import machine
import torch
from formats import ROOT

sys.path.insert(0, str(ROOT))

from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.sliding import windows
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options

PRECISIONS = ("fp32", "fp16", "int8")


def perplexity(model: GPT2, ids: Sequence[int]) -> float:
    """Return the perplexity of all tokens but the first, with at least half a context length before each if possible.

    The text is fed in as in generation, because the KV cache may be rounded too.
    """
    loss, done = 0.0, 1
    context = new_context(model, model.shape.n_positions)
    for start, end in windows(0, len(ids), model.shape.n_positions):
        first = context.start([ids[start : start + 1]])
        rest = [context.extend({0: ids[start + 1 : end - 1]})] if end - start > 2 else []
        logits = torch.cat([first, *rest])[done - start - 1 :]
        targets = torch.tensor(ids[done:end])
        loss += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
        done = end
    return math.exp(loss / (len(ids) - 1))


def greedy(generator: Generator, prompts: Sequence[str], length: int) -> list[tuple[int, ...]]:
    """Return the greedy ids after each prompt."""
    wanted = decoding_options({"decoding": "greedy", "max_new_tokens": length, "suppress_eos": True})
    return [generator.generate(prompt, wanted)[0].ids for prompt in prompts]


def first_difference(ids: Sequence[int], exact: Sequence[int]) -> int | None:
    """Return the number of the first token that differs, counted from 1."""
    pairs = zip(ids, exact, strict=True)
    return next((number for number, (one, other) in enumerate(pairs, 1) if one != other), None)


def prompts_from(generator: Generator, ids: Sequence[int], count: int, length: int) -> list[str]:
    """Return pieces of the text at even distances."""
    distance = (len(ids) - length) // max(1, count - 1)
    return [generator.tokenizer.decode(list(ids[n * distance :][:length])) for n in range(count)]


def compared(texts: Sequence[tuple[int, ...]], exact: Sequence[tuple[int, ...]]) -> dict:
    """Return how many texts differ from those of fp32, and where they first do."""
    places = [place for pair in zip(texts, exact, strict=True) if (place := first_difference(*pair))]
    return {
        "texts_that_differ": len(places),
        "first_difference_earliest": min(places, default=None),
        "first_difference_median": statistics.median(places) if places else None,
    }


def main() -> None:
    """Measure, print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="a text that the model has not seen")
    parser.add_argument("--model", default="gpt2-tiny", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=50_000, help="of the text that are read (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=50, help="greedy texts (default: %(default)s)")
    parser.add_argument("--prompt_tokens", type=int, default=32, help="of each prompt (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=200, help="of each greedy text (default: %(default)s)")
    options = parser.parse_args()
    text, results, exact = options.file.read_text(encoding="utf-8"), {}, []
    for precision in PRECISIONS:
        generator = load(options.model, "cpu", precision=precision)
        ids = generator.encode(text)[: options.tokens]
        prompts = prompts_from(generator, ids, options.prompts, options.prompt_tokens)
        texts = greedy(generator, prompts, options.new_tokens)
        exact = exact or texts
        results[precision] = {
            "held_in": generator.model.precision,
            "tokens": len(ids),
            "perplexity": perplexity(generator.model, ids),
            **compared(texts, exact),
        }
        print(f"{precision}: {results[precision]}", file=sys.stderr)
    told = {"machine": machine.description(), "model": options.model, "prompts": options.prompts, "results": results}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
