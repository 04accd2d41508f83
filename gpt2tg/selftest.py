"""Are our texts those of transformers on this machine? `python -m gpt2tg.selftest` finds out in under a minute.

It makes small random models, prompts and settings, writes with our decoders and with transformers' own `generate`,
and compares token for token. Our prompts of unequal length go through the model together, each of them alone and
unpadded through transformers. What it prints can be put in a bug report.
"""

from __future__ import annotations

import platform
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg import __version__
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.decoding import beam, filters, sampling
from gpt2tg.decoding.interface import Filter
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.model import GPT2

# Random models tried, and comparisons made on each: 3 prompts in each of 5 settings.
MODELS = 20
SETTINGS_PER_MODEL = 5
PROMPTS = 3

VOCABULARY = 40

# Two candidates nearer to each other than this may come out either way: the sums are not made in the same order.
NEAR_TIE = 1e-5


@dataclass(frozen=True)
class Difference:
    """A text of ours that is not the one of transformers."""

    settings: dict[str, Any]
    prompt: list[int]
    ours: list[tuple[int, ...]]
    theirs: list[tuple[int, ...]]
    nearest: float
    """The smallest distance between two candidates along the way."""


def compare(seed: int, settings_tried: int = SETTINGS_PER_MODEL) -> tuple[Counter[tuple[str, str]], list[Difference]]:
    """Compare on one random model.

    Returns:
        How many comparisons there were by class and outcome, and the differences that no near tie explains.
    """
    chance = random.Random(seed)
    model = random_model(seed, layers=chance.choice([1, 2]), width=chance.choice([16, 32]))
    counts: Counter[tuple[str, str]] = Counter()
    differences = []
    for _ in range(settings_tried):
        settings = draw_settings(chance)
        prompts = [chance.choices(range(VOCABULARY), k=chance.randint(1, 12)) for _ in range(PROMPTS)]
        for prompt, mine in zip(prompts, ours(model, prompts, settings), strict=True):
            expected = theirs(model, prompt, settings)
            if mine == expected:
                counts[class_of(settings), "equal"] += 1
                continue
            nearest = narrowest_choice(model, prompt, settings)
            if nearest < NEAR_TIE:
                counts[class_of(settings), "near tie"] += 1
            else:
                counts[class_of(settings), "different"] += 1
                differences.append(Difference(settings, prompt, mine, expected, nearest))
    return counts, differences


def random_model(seed: int, layers: int, width: int) -> GPT2LMHeadModel:
    """A small GPT-2 with weights large enough to make its choices clear."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def gpt2_of(model: GPT2LMHeadModel) -> GPT2:
    """The weights of a model of transformers, computed by us."""
    config = model.config
    weights = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    shape = ModelShape(
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_inner=4 * config.n_embd,
        activation=config.activation_function,
        epsilon=config.layer_norm_epsilon,
        scale_attention=True,
        scale_by_layer=False,
        tied=config.tie_word_embeddings,
        end_ids=(0,),
    )
    return GPT2(weights, shape, torch.device("cpu"))


def draw_settings(chance: random.Random) -> dict[str, Any]:
    """A random configuration of the controls that transformers has, in its own terms."""
    settings: dict[str, Any] = {"max_new_tokens": chance.randint(1, 14), "num_beams": chance.choice([1, 1, 2, 3, 5])}
    settings["eos_token_id"] = chance.sample(range(VOCABULARY), chance.choice([1, 1, 1, 2, 3]))
    if chance.random() < 0.4:
        settings["no_repeat_ngram_size"] = chance.randint(1, 4)
    if chance.random() < 0.4:
        settings["repetition_penalty"] = chance.choice([0.8, 1.1, 1.5, 3.0])
    if chance.random() < 0.3:
        settings["min_new_tokens"] = chance.randint(1, settings["max_new_tokens"])
    if chance.random() < 0.3:
        banned = [chance.choices(range(VOCABULARY), k=chance.choice([1, 1, 2])) for _ in range(3)]
        settings["bad_words_ids"] = [ids for ids in banned if ids[0] not in settings["eos_token_id"]] or [[1, 2]]
    if chance.random() < 0.3:
        sequences = {tuple(chance.choices(range(VOCABULARY), k=chance.choice([1, 1, 2, 3]))) for _ in range(4)}
        settings["sequence_bias"] = [[list(ids), chance.choice([-3.0, -1.0, 1.0, 4.0])] for ids in sequences]
    if settings["num_beams"] > 1:
        settings["length_penalty"] = chance.choice([-0.5, 0.0, 0.7, 1.0, 2.0])
        settings["early_stopping"] = chance.choice([True, False, "never"])
        settings["num_return_sequences"] = chance.randint(1, settings["num_beams"])
    return settings


def ours(model: GPT2LMHeadModel, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    """Our ids for each prompt, all prompts side by side."""
    ends = frozenset(settings["eos_token_id"])
    room = settings["max_new_tokens"]
    rows = new_context(gpt2_of(model), max(map(len, prompts)) + room)
    chain = filters_of(settings)

    def finish(_: int, ids: Sequence[int]) -> str | None:
        return "eos" if ids[-1] in ends else "length" if len(ids) == room else None

    if settings["num_beams"] == 1:
        found: list[list[int]] = [[] for _ in prompts]
        owners = list(range(len(prompts)))
        for token in sampling.decode(rows, prompts, owners, chain, sampling.most_probable, finish):
            if token.id is not None:
                found[token.sample].append(token.id)
        return [[tuple(ids)] for ids in found]
    search = beam.BeamSettings(
        settings["num_beams"],
        end_tokens=len(ends),
        early_stopping=str(settings["early_stopping"]).lower(),
        length_penalty=settings["length_penalty"],
    )
    last: dict[int, beam.Search] = {}
    proposers = [beam.best] * len(prompts)
    for index, one in beam.beam_search(rows, prompts, [room] * len(prompts), chain, search, proposers, finish):
        last[index] = one
    wanted = settings["num_return_sequences"]
    return [[text.ids for text in last[index].finished[:wanted]] for index in range(len(prompts))]


def filters_of(settings: dict[str, Any]) -> list[Filter]:
    """Our filters for the controls, in their one order."""
    chain: list[Filter] = []
    if "sequence_bias" in settings:
        biases = {tuple(ids): bias for ids, bias in settings["sequence_bias"]}
        chain.append(lambda x, texts: filters.sequence_bias(x, [t.ids for t in texts], biases))
    if "repetition_penalty" in settings:
        penalty = settings["repetition_penalty"]
        chain.append(lambda x, texts: filters.repetition_penalty(x, [t.ids for t in texts], penalty, None))
    if "no_repeat_ngram_size" in settings:
        size = settings["no_repeat_ngram_size"]
        chain.append(lambda x, texts: filters.no_repeat_ngram(x, [t.ids for t in texts], size))
    if "bad_words_ids" in settings:
        bans = {tuple(ids): -torch.inf for ids in settings["bad_words_ids"]}
        chain.append(lambda x, texts: filters.sequence_bias(x, [t.ids for t in texts], bans))
    if "min_new_tokens" in settings:
        least, ends = settings["min_new_tokens"], settings["eos_token_id"]
        chain.append(lambda x, ts: filters.ban(x, [i for i, t in enumerate(ts) if len(t.new) < least], ends))
    return chain


def theirs(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> list[tuple[int, ...]]:
    """The ids of transformers for one prompt, alone and unpadded; what follows an end token is padding."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=settings["eos_token_id"][0],
        **settings,
    )
    texts = []
    for row in output[:, len(prompt) :].tolist():
        end = next((i for i, token in enumerate(row) if token in settings["eos_token_id"]), len(row) - 1)
        texts.append(tuple(row[: end + 1]))
    return texts


def narrowest_choice(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> float:
    """The smallest distance between the candidates of a rank and the next along transformers' own search."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=settings["eos_token_id"][0],
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    gaps = []
    for scores in output.scores:
        ranked = scores[scores > -torch.inf].flatten().sort(descending=True).values
        gaps += (ranked[:-1] - ranked[1:]).abs()[: 4 * settings["num_beams"]].tolist()
    if output.get("sequences_scores") is not None:
        gaps += output.sequences_scores.sort().values.diff().abs().tolist()
    return min(gaps, default=float("inf"))


def class_of(settings: dict[str, Any]) -> str:
    """What a configuration is counted under."""
    names = ["beam" if settings["num_beams"] > 1 else "greedy"]
    names += [name for name in ("no_repeat_ngram_size", "repetition_penalty", "min_new_tokens") if name in settings]
    names += [name for name in ("bad_words_ids", "sequence_bias") if name in settings]
    return names[0] if len(names) == 1 else f"{names[0]} with controls"


def main() -> int:
    """Compare on all models and say what came out. Returns 0 where every text was the same, else 1."""
    transformers.logging.set_verbosity_error()
    counts: Counter[tuple[str, str]] = Counter()
    differences: list[Difference] = []
    for seed in range(MODELS):
        found, different = compare(seed)
        counts += found
        differences += different
    print(
        f"gpt2tg {__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {platform.platform()}"
    )
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{kind}: {number} {outcome}")
    for difference in differences[:3]:
        print(difference)
    verdict = "the same texts as transformers" if not differences else f"{len(differences)} texts differ"
    print(f"verdict: {verdict}, in {counts.total()} comparisons")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
