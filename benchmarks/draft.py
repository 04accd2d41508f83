"""Measure speculative decoding: a model alone, with a draft that is mostly right, and with one that never is.

    python benchmarks/draft.py                                    gpt2-xl's shape, gpt2's as its draft
    python benchmarks/draft.py --shape gpt2-medium --precision int8 --new 64

The weights are random, made so that the draft is right as often as `--agreement` says. The layers compute as usual, but
their output projections are almost zero, so that a state is mostly the embedding of the last token; and row n of the
head is the embedding of the token that n follows. The model thus continues a token with its successor in a random
cycle. The draft has the same cycle except for some tokens, at random, which have other successors.

All three write the same texts, which is checked, in turns. Seconds are processor time, because other programs may run:
give one thread (the default) unless the machine is quiet. A table goes to stderr, JSON to the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator

import machine
import torch
from formats import LARGE_SHAPES, POSITIONS, ROOT, SHAPES, VOCABULARY
from torch import Tensor

sys.path.insert(0, str(ROOT))

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.engine.model import GPT2
from gpt2tg.generation.draft_model import DRAFT_PRECISION, DraftModel
from gpt2tg.generation.generator import Generator, Request
from gpt2tg.options import decoding_options

ALL_SHAPES = SHAPES | LARGE_SHAPES

# The logit of the successor. Those of all other tokens are about 0, so its probability is 0.99.
SHARP = 15.6

SEED = 0


def shape_of(name: str) -> ModelShape:
    """Return the shape of a model with a head of its own."""
    sizes = ALL_SHAPES[name]
    return ModelShape(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_inner=4 * sizes["n_embd"], epsilon=1e-5, activation="gelu_new",
        end_ids=(0,), scale_attention=True, scale_by_layer=False, tied=False, **sizes,
    )  # fmt: skip


def predecessors(agreement: float) -> Tensor:
    """Return (V,) the token that each token follows in a random cycle. A share of them agrees with agreement 1."""
    draw = torch.Generator().manual_seed(SEED)
    cycle, found = torch.randperm(VOCABULARY, generator=draw), torch.empty(VOCABULARY, dtype=torch.long)
    found[cycle] = cycle.roll(1)
    others = torch.randperm(VOCABULARY, generator=draw)[: round((1 - agreement) * VOCABULARY)]
    found[others] = found[others.roll(1)]
    return found


def weights(shape: ModelShape, agreement: float) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model, see above."""
    torch.manual_seed(SEED)
    embedding = torch.empty(0)
    for name, size in shape.tensors():
        if name == EMBEDDING:
            embedding = torch.nn.functional.normalize(torch.randn(size)) * shape.n_embd**0.5
            yield name, embedding
        elif name == HEAD:
            yield name, embedding[predecessors(agreement)] * (SHARP / shape.n_embd)
        elif name.endswith("c_proj.weight"):
            yield name, torch.empty(size).uniform_(-1e-6, 1e-6)
        elif name.endswith(".weight") and len(size) == 2:
            yield name, torch.empty(size).uniform_(-0.03, 0.03) * (name != "wpe.weight")
        else:
            yield name, torch.ones(size) if name.endswith(".weight") else torch.zeros(size)


def new_model(name: str, precision: str, agreement: float = 1.0) -> GPT2:
    """Return a model of this shape on the CPU."""
    shape = shape_of(name)
    return GPT2(weights(shape, agreement), shape, torch.device("cpu"), precision)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=ALL_SHAPES, default="gpt2-xl")
    parser.add_argument("--draft", choices=ALL_SHAPES, default="gpt2", help="shape of the draft model")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("--agreement", type=float, nargs="+", default=[0.8, 0.7, 0.6, 0.0])
    parser.add_argument("--decoding", choices=("greedy", "top_p"), default="top_p")
    parser.add_argument("--rows", type=int, default=1, help="texts at a time, with --decoding top_p")
    parser.add_argument("--new", type=int, default=96, help="new tokens of a text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write(generator: Generator, options: argparse.Namespace, repeat: int) -> tuple[float, list[tuple[int, ...]]]:
    """Generate the texts of one turn. Returns the processor time and the new ids."""
    drawn = dict(seed=repeat, temperature=1.0, num_sequences=options.rows) if options.decoding == "top_p" else {}
    wanted = decoding_options(dict(decoding=options.decoding, max_new_tokens=options.new, prompt_lookup=0, **drawn))
    request = Request("", 0, tuple(range(repeat + 1, repeat + 9)), options.new)
    start = time.process_time()
    (samples,) = generator.generate_batch([request], wanted)
    return time.process_time() - start, [sample.ids for sample in samples]


def main() -> None:
    """Measure, print the table and the JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(BUNDLED_DIRECTORY, VOCABULARY, [0])
    generator = Generator(new_model(options.shape, options.precision), tokenizer)
    generator.end_ids, generator.unused = (), None
    drafts: dict[str, DraftModel | None] = {"alone": None}
    for agreement in options.agreement:
        model = new_model(options.draft, DRAFT_PRECISION, agreement)
        drafts[f"draft right {agreement:.0%}"] = DraftModel(model, generator.model)
    seconds: dict[str, list[float]] = {name: [] for name in drafts}
    for repeat in range(options.repeats):
        texts = []
        for name, draft in drafts.items():
            generator.draft = draft
            taken, written = write(generator, options, repeat)
            seconds[name].append(taken)
            texts.append(written)
        assert all(written == texts[0] for written in texts), "a draft has changed a text"
        print(f"turn {repeat + 1} of {options.repeats} done", file=sys.stderr)
    report(options, seconds, drafts)


def report(options: argparse.Namespace, seconds: dict[str, list[float]], drafts: dict[str, DraftModel | None]) -> None:
    """Print the table on stderr and the JSON on stdout."""
    tokens, rows = options.new * options.rows, []
    print(f"\n{options.shape} in {options.precision}, {options.draft} drafts in {DRAFT_PRECISION}", file=sys.stderr)
    print(
        f"{options.decoding}, {options.rows} rows, {options.new} new tokens, {options.threads} threads", file=sys.stderr
    )
    for name, draft in drafts.items():
        found = {"name": name, "tokens_per_second": tokens / statistics.median(seconds[name])}
        ratios = [alone / taken for alone, taken in zip(seconds["alone"], seconds[name], strict=True)]
        found |= {"speedup": statistics.median(ratios), "seconds": seconds[name]}
        line = f"{name:>18}: {found['tokens_per_second']:7.2f} tokens/s, {found['speedup']:.2f} times alone"
        if draft is not None:
            pace = draft.pace
            found |= {"guessed": pace.guessed, "right": pace.right}
            line += f", {pace.right} of {pace.guessed} guesses right"
        print(line, file=sys.stderr)
        rows.append(found)
    print(json.dumps({"machine": machine.description(), "options": vars(options), "results": rows}))


if __name__ == "__main__":
    main()
