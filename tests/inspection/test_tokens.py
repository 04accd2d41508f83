"""Probabilities, ranks and entropies of tokens against transformers and against the decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt2tg.engine import model as engine_model
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tokens import inspect_ids, inspect_sample, inspect_text, next_token, token_texts
from gpt2tg.options import STRATEGIES, decoding_options

PROMPT = "The fox"
TEXT = "The owl sold silence by the ounce and slept badly in a quiet room."


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def distributions(reference: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    """Return (T, V) log-probabilities of transformers after each of the ids."""
    with torch.inference_mode():
        return reference(torch.tensor([ids])).logits[0].double().log_softmax(dim=1)


def test_inspected_tokens_equal_transformers(generator: Generator, reference: GPT2LMHeadModel) -> None:
    tokens = inspect_text(generator, TEXT, alternatives=3)
    ids = [token.id for token in tokens]
    assert ids == generator.tokenizer.encode(TEXT)
    for token, logprobs in zip(tokens, distributions(reference, [0, *ids]), strict=False):
        assert token.logprob == pytest.approx(logprobs[token.id].item(), abs=1e-4)
        assert token.probability == pytest.approx(logprobs[token.id].exp().item(), abs=1e-5)
        order = logprobs.argsort(descending=True).tolist()
        assert token.rank == order.index(token.id) + 1
        assert token.entropy == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-4)
        assert [other.id for other in token.alternatives] == order[:3]
        assert [other.rank for other in token.alternatives] == [1, 2, 3]
        assert token.alternatives[0].probability == pytest.approx(logprobs.max().exp().item(), abs=1e-5)


def test_chunk_size_of_the_logits_changes_nothing(
    generator: Generator, reference: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = generator.tokenizer.encode(TEXT)
    pieces = list(generator.model.all_logits(ids, chunk=5))
    assert [len(piece) for piece in pieces[:-1]] == [5] * (len(pieces) - 1)
    assert torch.allclose(torch.cat(pieces).log_softmax(1).double(), distributions(reference, ids), atol=1e-4)
    whole = inspect_text(generator, TEXT)
    monkeypatch.setattr(engine_model.GPT2.all_logits, "__defaults__", (3,))
    in_pieces = inspect_text(generator, TEXT)
    assert [token.rank for token in in_pieces] == [token.rank for token in whole]
    assert [token.logprob for token in in_pieces] == pytest.approx([token.logprob for token in whole], abs=1e-5)


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_inspected_logprobs_sum_to_the_logprob_of_the_sample(generator: Generator, decoding: str) -> None:
    """The decoders sum them while generating with a KV cache."""
    options = decoding_options({"decoding": decoding, "max_new_tokens": 20, "seed": 3, "temperature": 1.3})
    for sample in generator.generate(PROMPT, options):
        tokens = inspect_sample(generator, sample)
        assert [token.id for token in tokens] == list(sample.ids)
        assert sum(token.logprob for token in tokens) == pytest.approx(sample.logprob, abs=1e-3)


@pytest.mark.parametrize("prompt", [PROMPT, "", TEXT + TEXT])
@pytest.mark.parametrize("overflow", ["slide", "truncate"])
def test_inspected_logprobs_match_beyond_the_context_window(generator: Generator, prompt: str, overflow: str) -> None:
    new = 40 if overflow == "truncate" else 150
    options = decoding_options(
        {"max_new_tokens": new, "seed": 3, "overflow": overflow, "num_sequences": 1, "suppress_eos": True}
    )
    (sample,) = generator.generate(prompt, options)
    assert len(sample.ids) == new
    assert sum(token.logprob for token in inspect_sample(generator, sample)) == pytest.approx(sample.logprob, abs=1e-3)


def test_token_texts_join_to_the_text(generator: Generator) -> None:
    text = "A café, 猫 and 🦉.\n"
    assert "".join(token.text for token in inspect_text(generator, text)) == text
    ids = generator.tokenizer.encode(text)
    assert token_texts(generator.tokenizer, [*ids, 0, *ids[:3]])[len(ids)] == "<|endoftext|>"


def test_empty_text_has_no_tokens(generator: Generator) -> None:
    assert inspect_text(generator, "") == []


def test_next_token_equals_transformers(generator: Generator, reference: GPT2LMHeadModel) -> None:
    found = next_token(generator, PROMPT, 5)
    logprobs = distributions(reference, generator.encode(PROMPT))[-1]
    values, ids = logprobs.topk(5)
    assert [candidate.id for candidate in found.candidates] == ids.tolist()
    assert [c.probability for c in found.candidates] == pytest.approx(values.exp().tolist(), abs=1e-5)
    assert found.candidates[0].text == generator.tokenizer.raw.decode([ids[0]], skip_special_tokens=False)
    assert found.entropy == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-4)
    assert sum(c.probability for c in next_token(generator, PROMPT, 1000).candidates) == pytest.approx(1, abs=1e-5)


def test_prompt_over_the_context_window(generator: Generator) -> None:
    long = "fox " * 90
    with pytest.raises(UserError, match="exceeds the context length of 64: shorten it"):
        next_token(generator, long, 3)
    ids = generator.encode(long)
    last = generator.tokenizer.decode(ids[-64:])
    assert generator.encode(last) == ids[-64:]
    assert next_token(generator, long, 3, overflow="truncate") == next_token(generator, last, 3)


def test_equally_probable_tokens_share_a_rank(model_dir: Path) -> None:
    flat = load(str(model_dir))
    flat.model.head = lambda hidden: torch.zeros(len(hidden), flat.model.shape.vocab_size)  # type: ignore[assignment]
    assert {candidate.rank for candidate in next_token(flat, PROMPT, 4).candidates} == {1}
    assert {token.rank for token in inspect_text(flat, "owl")} == {1}


def test_broken_weights_raise_an_error(model_dir: Path) -> None:
    broken = load(str(model_dir))
    broken.model.head = lambda hidden: torch.full((len(hidden), broken.model.shape.vocab_size), torch.nan)  # type: ignore[assignment]
    with pytest.raises(RunError, match="not finite at new token 1"):
        inspect_ids(broken, [0], [5, 6])
