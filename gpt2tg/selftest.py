"""Check that this installation generates the same texts as transformers: `python -m gpt2tg.selftest`, under a minute.

It makes small random models, prompts and settings, generates with the shipped `Generator` and with transformers'
`generate`, and compares token by token. Our prompts, of unequal lengths, are one batch; transformers reads each of them
alone and without padding. The output can be pasted into a bug report.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg import __version__
from gpt2tg.decoding.beam import EarlyStopping
from gpt2tg.generation.generator import Generator, load
from gpt2tg.generation.requests import Request
from gpt2tg.options import DecodingOptions

# The number of random models, and the comparisons on each: 3 prompts in each of 5 settings.
MODELS = 20
SETTINGS_PER_MODEL = 5
PROMPTS = 3

VOCABULARY = 40

# Candidates whose scores differ by less than this may change places, because sums are computed in a different order.
NEAR_TIE = 1e-5

# The settings of transformers that have the same name and meaning here.
SAME_NAMES = ("max_new_tokens", "num_beams", "repetition_penalty", "min_new_tokens", "length_penalty")

EARLY_STOPPING: dict[bool | str, EarlyStopping] = {True: "true", False: "false", "never": "never"}


@dataclass(frozen=True)
class Difference:
    """A text that differs from that of transformers."""

    settings: dict[str, Any]
    prompt: list[int]
    ours: list[tuple[int, ...]]
    theirs: list[tuple[int, ...]]
    nearest: float
    """The smallest distance between two candidates along the way."""


def compare(seed: int, settings_tried: int = SETTINGS_PER_MODEL) -> tuple[Counter[tuple[str, str]], list[Difference]]:
    """Compare on one random model.

    Returns:
        The number of comparisons by class and outcome, and the differences that no near tie explains.
    """
    chance = random.Random(seed)
    model = random_model(seed, layers=chance.choice([1, 2]), width=chance.choice([16, 32]))
    generator = generator_of(model)
    counts: Counter[tuple[str, str]] = Counter()
    differences = []
    for _ in range(settings_tried):
        settings = draw_settings(chance)
        prompts = [chance.choices(range(VOCABULARY), k=chance.randint(1, 12)) for _ in range(PROMPTS)]
        for prompt, mine in zip(prompts, ours(generator, prompts, settings), strict=True):
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
    """Return a small GPT-2 of transformers, with weights so large that its choices are clear."""
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
    model = GPT2LMHeadModel(config)
    model.train(False)
    return model


def generator_of(model: GPT2LMHeadModel) -> Generator:
    """Return our generator for a model of transformers, loaded from its files. The word "7" is the token 7."""
    tokenizer = Tokenizer(WordLevel({str(token): token for token in range(model.config.vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    # Windows cannot delete files that are still memory-mapped.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        model.save_pretrained(directory)
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        return load(directory, "cpu", precision="fp32")


def draw_settings(chance: random.Random) -> dict[str, Any]:
    """Return a random choice of the settings that transformers has too, by its names."""
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


def ours(generator: Generator, prompts: Sequence[list[int]], settings: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    """Return our ids for each prompt, all prompts in one batch."""
    model = copy.copy(generator.model)
    model.shape = replace(model.shape, end_ids=tuple(settings["eos_token_id"]))
    limit = settings["max_new_tokens"]
    requests = [Request("", index, tuple(prompt), limit) for index, prompt in enumerate(prompts)]
    found = Generator(model, generator.tokenizer).generate_batch(requests, options_of(settings))
    return [[sample.ids for sample in samples] for samples in found]


def options_of(settings: dict[str, Any]) -> DecodingOptions:
    """Return settings of transformers as our options."""

    def words(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    chosen = {name: settings[name] for name in SAME_NAMES if name in settings}
    return DecodingOptions(
        decoding="beam" if settings["num_beams"] > 1 else "greedy",
        num_sequences=settings.get("num_return_sequences", 1),
        early_stopping=EARLY_STOPPING[settings.get("early_stopping", False)],
        no_repeat_ngram=settings.get("no_repeat_ngram_size", 0),
        ban_words=tuple(words(ids) for ids in settings.get("bad_words_ids", ())),
        bias=tuple(f"{words(ids)}={bias}" for ids, bias in settings.get("sequence_bias", ())),
        **chosen,
    )


def theirs(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the ids of transformers for one prompt, alone and without padding."""
    texts = []
    for row in _generate(model, prompt, settings).sequences[:, len(prompt) :].tolist():
        # What follows an end token is padding.
        end = next((i for i, token in enumerate(row) if token in settings["eos_token_id"]), len(row) - 1)
        texts.append(tuple(row[: end + 1]))
    return texts


def narrowest_choice(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> float:
    """Return the smallest distance between the scores of neighbouring candidates in transformers' own search."""
    output = _generate(model, prompt, settings)
    gaps: list[float] = []
    for scores in output.scores:
        ranked = scores[scores > -torch.inf].flatten().sort(descending=True).values
        gaps += (ranked[:-1] - ranked[1:]).abs()[: 4 * settings["num_beams"]].tolist()
    if output.get("sequences_scores") is not None:
        gaps += output.sequences_scores.sort().values.diff().abs().tolist()
    return min(gaps, default=float("inf"))


def _generate(model: GPT2LMHeadModel, prompt: list[int], settings: dict[str, Any]) -> Any:
    """Return the output of transformers' `generate`. Its type depends on the settings."""
    return model.generate(  # type: ignore[misc]  # transformers' annotations reject its own models
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=settings["eos_token_id"][0],
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )


def class_of(settings: dict[str, Any]) -> str:
    """Return the class under which a choice of settings is counted."""
    names = ["beam" if settings["num_beams"] > 1 else "greedy"]
    names += [name for name in ("no_repeat_ngram_size", "repetition_penalty", "min_new_tokens") if name in settings]
    names += [name for name in ("bad_words_ids", "sequence_bias") if name in settings]
    return names[0] if len(names) == 1 else f"{names[0]} with controls"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare on all models and print the outcome. Returns 0 if every text was the same, else 1."""
    argparse.ArgumentParser(
        prog="python -m gpt2tg.selftest",
        usage=argparse.SUPPRESS,  # so that an error is one line
        description="Check that this installation generates the same texts as transformers, in under a minute.",
    ).parse_args(argv)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as above
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
