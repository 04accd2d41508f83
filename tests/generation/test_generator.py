"""From prompt to text: against transformers' `generate`, and properties that hold for every model."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from conftest import kernels_here
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.decoding.interface import Text
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.filter_chain import FilterChain, filter_chain
from gpt2tg.generation.generator import Generator, Sample, choose_device, load
from gpt2tg.options import DecodingOptions, decoding_options

PROMPTS = ["The owl", "Two bells argued about the hour", "", "A fox counted the stars twice and found", "é—猫🐈"]


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def options(decoding: str, **settings: object) -> DecodingOptions:
    return decoding_options({"decoding": decoding, "max_new_tokens": 20, **settings})


def transformers_ids(model: GPT2LMHeadModel, ids: list[int], **settings: object) -> list[int]:
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), pad_token_id=0, **settings
    )
    return output[0, len(ids) :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids_equal_transformers(generator: Generator, reference: GPT2LMHeadModel, prompt: str) -> None:
    (sample,) = generator.generate(prompt, options("greedy"))
    ids = generator.encode(prompt)
    assert list(sample.ids) == transformers_ids(reference, ids, do_sample=False, max_new_tokens=20)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("ngram", [0, 2])
def test_beam_ids_equal_transformers(generator: Generator, reference: GPT2LMHeadModel, prompt: str, ngram: int) -> None:
    best, *_ = generator.generate(prompt, options("beam", num_beams=4, no_repeat_ngram=ngram))
    expected = transformers_ids(
        reference, generator.encode(prompt), do_sample=False, num_beams=4, no_repeat_ngram_size=ngram, max_new_tokens=20
    )
    assert list(best.ids) == expected


STRATEGIES = ["greedy", "beam", "sample", "top_k", "top_p", "beam_sample"]


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_streamed_pieces_are_the_completion(generator: Generator, decoding: str) -> None:
    wanted = options(decoding, seed=4)
    pieces: dict[int, str] = {}
    samples: dict[int, Sample] = {}
    for chunk in generator.stream("The fox", wanted):
        pieces[chunk.index] = pieces.get(chunk.index, "") + chunk.text
        if chunk.sample:
            samples[chunk.index] = chunk.sample
    assert pieces == {index: sample.completion for index, sample in samples.items()}
    assert list(samples.values()) == generator.generate("The fox", wanted)


@pytest.mark.parametrize("decoding", STRATEGIES)
def test_completion_is_the_decoded_ids_without_the_end_token(generator: Generator, decoding: str) -> None:
    for sample in generator.generate("The fox", options(decoding, seed=4)):
        assert sample.completion == generator.tokenizer.decode([i for i in sample.ids if i != 0])
        assert sample.text == "The fox" + sample.completion


@pytest.mark.parametrize("decoding", ["sample", "top_k", "top_p", "beam_sample"])
def test_seed_determines_the_text(generator: Generator, decoding: str) -> None:
    wanted = options(decoding, seed=0, temperature=1.0, num_sequences=1)
    assert generator.generate("The", wanted) == generator.generate("The", wanted)
    others = [generator.generate("The", replace(wanted, seed=seed))[0].ids for seed in range(1, 6)]
    assert generator.generate("The", wanted)[0].ids not in others


def test_texts_differ_without_a_seed(generator: Generator) -> None:
    wanted = options("sample", temperature=1.0, num_sequences=1)
    texts = {generator.generate("The", wanted)[0].ids for _ in range(4)}
    assert len(texts) > 1


def test_generation_leaves_the_global_random_state_alone(generator: Generator) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator.generate("The", options("top_p"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("decoding", ["sample", "top_k", "top_p"])
def test_sample_does_not_depend_on_other_samples(generator: Generator, decoding: str) -> None:
    several = generator.generate("The", options(decoding, seed=2, num_sequences=5))
    alone = generator.generate("The", options(decoding, seed=2, num_sequences=1))
    assert several[0].ids == alone[0].ids
    assert len({sample.ids for sample in several}) > 1


@pytest.mark.parametrize("decoding", ["top_k", "top_p", "sample"])
def test_temperature_zero_is_greedy(generator: Generator, decoding: str) -> None:
    assert generator.generate("The", options(decoding, temperature=0)) == generator.generate("The", options("greedy"))


def test_temperature_zero_with_beams_is_beam_search(generator: Generator) -> None:
    assert generator.generate("The", options("beam_sample", temperature=0)) == generator.generate(
        "The", options("beam")
    )


def test_top_k_of_one_is_greedy(generator: Generator) -> None:
    drawn = generator.generate("The", options("top_k", top_k=1, num_sequences=1, seed=3))
    assert drawn[0].ids == generator.generate("The", options("greedy"))[0].ids


def test_logprob_is_that_of_transformers(generator: Generator, reference: GPT2LMHeadModel) -> None:
    for sample in generator.generate("The fox", options("top_p", seed=4)):
        ids = [*generator.encode("The fox"), *sample.ids]
        with torch.no_grad():
            logprobs = reference(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        start = len(ids) - len(sample.ids)
        expected = sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids)))
        assert sample.logprob == pytest.approx(expected, abs=1e-3)


def test_text_fills_the_context_window_completely(generator: Generator, reference: GPT2LMHeadModel) -> None:
    (sample,) = generator.generate("The", decoding_options({"decoding": "greedy", "max_length": 64}))
    ids = generator.encode("The")
    assert list(sample.ids) == transformers_ids(reference, ids, do_sample=False, max_length=64)


def test_max_length_counts_the_prompt(generator: Generator) -> None:
    prompt = len(generator.encode("The fox"))
    for decoding in ("greedy", "beam"):
        wanted = decoding_options({"decoding": decoding, "max_length": prompt + 5})
        assert all(len(sample.ids) <= 5 for sample in generator.generate("The fox", wanted))
    unending = [s for s in generator.generate("The fox", wanted) if s.finish_reason == "length"]
    assert all(len(sample.ids) == 5 for sample in unending)


@pytest.mark.parametrize(
    ("settings", "option", "numbers"),
    [
        ({"max_length": 65}, "max_length", ("65", "64")),
        ({"max_length": 2}, "max_length", ("2",)),
        ({"max_new_tokens": 64}, "max_new_tokens", ("64",)),
    ],
)
def test_lengths_over_the_context_window_are_refused_first(
    generator: Generator, settings: dict, option: str, numbers: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT2, "hidden", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UserError) as caught:
        generator.generate("The fox counted", decoding_options({"decoding": "greedy", **settings}))
    assert caught.value.option == option
    assert all(number in str(caught.value) for number in numbers)


def test_default_length_is_limited_by_the_context_window(generator: Generator) -> None:
    (sample,) = generator.generate("The", decoding_options({"decoding": "greedy"}))
    assert len(generator.encode("The")) + len(sample.ids) <= 64


def test_broken_weights_raise_and_generate_nothing(generator: Generator, model_dir: Path) -> None:
    shape = generator.model.shape
    weights = {**read_weights(model_dir, shape), "ln_f.weight": torch.full((32,), torch.nan)}
    broken = Generator(GPT2(weights, shape, torch.device("cpu")), generator.tokenizer)
    for decoding in ("greedy", "beam", "top_p"):
        with pytest.raises(RunError, match="not finite at new token 1"):
            broken.generate("The", options(decoding))


def test_missing_device_is_refused() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"{missing} asked for"):
        choose_device(missing)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_greedy_ids_on_a_gpu_equal_the_cpu(model_dir: Path, generator: Generator) -> None:
    on_gpu = load(str(model_dir), "cuda", precision="fp32")
    for prompt in PROMPTS:
        assert on_gpu.generate(prompt, options("greedy"))[0].ids == generator.generate(prompt, options("greedy"))[0].ids


@pytest.mark.parametrize(("decoding", "alive"), [("top_k", 1), ("beam_sample", 2)])
def test_beams_keep_a_token_besides_the_end_token(generator: Generator, decoding: str, alive: int) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    for change in filter_chain(options(decoding, top_k=1), generator.tokenizer, (0,)).filters:
        logits = change(logits, [Text.after([5])])
    assert int(logits.isfinite().sum()) == alive


@pytest.mark.parametrize(
    ("decoding", "settings"),
    [
        ("sample", {"temperature": 1e-4}),
        ("sample", {"temperature": 1e6}),
        ("beam_sample", {"temperature": 1e-4}),
        ("sample", {"repetition_penalty": 0.001}),
        ("sample", {"repetition_penalty": 1e6}),
        ("sample", {"presence_penalty": 1e6, "frequency_penalty": 1e6}),
        ("sample", {"presence_penalty": -1e6, "frequency_penalty": -1e6}),
        ("sample", {"bias": ("owl=1000000",)}),
        ("sample", {"bias": ("owl=-1000000",)}),
        ("beam", {"length_penalty": 20.0}),
        ("beam", {"length_penalty": -20.0}),
        ("diverse_beam", {"diversity_penalty": 1e6}),
    ],
)
def test_extreme_settings_generate_texts(generator: Generator, decoding: str, settings: dict[str, object]) -> None:
    for sample in generator.generate("The owl", options(decoding, seed=3, **settings)):
        assert len(sample.ids) == 20 or sample.finish_reason == "eos"
        assert sample.logprob > -torch.inf


# The KV cache


@pytest.fixture
def exact(model_dir: Path) -> Generator:
    """A new generator with an empty cache, whose results are bit-equal however tokens are batched."""
    made = load(str(model_dir))
    kernels_here()
    assert new_context(made.model, 8).is_exact
    return made


@pytest.mark.parametrize(
    "decoding", ["greedy", "sample", "top_p", "beam", "beam_sample", "diverse_beam", "contrastive"]
)
def test_sample_is_bit_equal_alone_streamed_and_batched(exact: Generator, model_dir: Path, decoding: str) -> None:
    """Ids and log-probability, with a cache that is empty, holds a prefix of the text, or another text."""
    wanted = options(decoding, seed=3, num_sequences=1)
    prompts = ["The fox counted", "The fox counted the stars twice", "Two bells"]
    fresh = [load(str(model_dir)).generate(prompt, wanted) for prompt in prompts]
    for prompt, expected in (*zip(prompts, fresh, strict=True), *zip(prompts, fresh, strict=True)):
        assert exact.generate(prompt, wanted) == expected
        assert [chunk.sample for chunk in exact.stream(prompt, wanted) if chunk.sample] == expected
    batch = exact.generate_batch([exact.fit(prompt, wanted, index) for index, prompt in enumerate(prompts)], wanted)
    if decoding in ("greedy", "beam", "contrastive", "diverse_beam"):  # draws depend on the index of the prompt
        assert [[replace(sample, prompt_index=0) for sample in samples] for samples in batch] == fresh
    assert batch[0] == fresh[0]


def test_common_prefix_is_read_from_the_kept_cache(exact: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2tg.engine.cpu.kernel_context import KernelContext

    read: list[int] = []
    original = KernelContext._read

    def counted(self: KernelContext, texts: dict, logits_of_all: bool) -> torch.Tensor:
        read.append(sum(map(len, texts.values())))
        return original(self, texts, logits_of_all)

    monkeypatch.setattr(KernelContext, "_read", counted)
    wanted = options("greedy", suppress_eos=True)
    exact.generate("The fox counted the stars", wanted)
    read.clear()
    exact.generate("The fox counted the bells", wanted)
    first, second = (exact.encode(f"The fox counted the {things}") for things in ("stars", "bells"))
    common = next(n for n, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    assert common > 5
    assert read[0] == len(second) - common


def test_interleaved_streams_do_not_affect_each_other(exact: Generator) -> None:
    wanted = options("greedy", suppress_eos=True)
    alone = [exact.generate(prompt, wanted) for prompt in ("The fox", "The fox counted")]
    streams = [exact.stream(prompt, wanted) for prompt in ("The fox", "The fox counted")]
    finished: list[list[Sample]] = [[], []]
    for pair in zip_longest(*streams):
        for samples, chunk in zip(finished, pair, strict=True):
            if chunk and chunk.sample:
                samples.append(chunk.sample)
    assert finished == alone
    assert exact.generate("The fox", wanted) == alone[0]


def test_closing_a_stream_early_does_not_affect_later_texts(exact: Generator) -> None:
    wanted = options("greedy", suppress_eos=True)
    expected = exact.generate("The fox", wanted)
    stream = exact.stream("The fox", wanted)
    next(stream)
    stream.close()
    assert exact.generate("The fox", wanted) == expected


def test_cache_of_many_texts_is_not_kept(exact: Generator) -> None:
    """Only the cache of a single text is kept: it has one row."""
    exact.generate("The", decoding_options({"decoding": "sample", "max_length": 64, "num_sequences": 8, "seed": 1}))
    exact.generate("The", decoding_options({"decoding": "beam", "max_length": 64}))
    assert exact.caches.spare is None
    exact.generate("The", options("greedy"))
    assert exact.caches.spare._cache.shape[2] == 1


@pytest.mark.parametrize("decoding", [*STRATEGIES, "diverse_beam", "contrastive"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_strategy_works_in_fp16_and_int8(model_dir: Path, precision: str, decoding: str) -> None:
    narrow = load(str(model_dir), precision=precision)
    samples = narrow.generate("The fox", options(decoding, seed=4))
    assert samples
    assert samples == narrow.generate("The fox", options(decoding, seed=4))


USED_UP = {"no_repeat_ngram": 1, "suppress_eos": True, "overflow": "slide", "max_new_tokens": 400}


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": "greedy", "prompt_lookup": 5},
        {"decoding": "sample", "seed": 1, "num_sequences": 2, "top_p": 1.0},
        {"decoding": "sample", "seed": 1, "best_of": 3, "num_sequences": 2, "typical_p": 0.9, "min_p": 0.01},
        {"decoding": "contrastive", "num_sequences": 1},
        {"decoding": "beam", "num_beams": 2, "num_sequences": 2},
        {"decoding": "beam_sample", "num_beams": 2, "num_sequences": 2, "seed": 3},
    ],
    ids=str,
)
def test_text_ends_as_banned_once_all_tokens_are_banned(generator: Generator, settings: dict[str, object]) -> None:
    """No token may repeat: at the end each token occurs once, except the end token."""
    options = decoding_options({**USED_UP, **settings})
    read = set(generator.encode("The fox"))
    chunks = list(generator.stream("The fox", options))
    samples = [chunk.sample for chunk in chunks if chunk.sample]
    assert len(samples) == options.draws
    for sample in samples:
        assert sample.finish_reason == "banned"
        assert sorted(sample.ids) == sorted(set(range(1, 300)) - read)
        streamed = "".join(chunk.text for chunk in chunks if chunk.index == sample.index)
        assert streamed == sample.completion == generator.tokenizer.decode(list(sample.ids))


def test_one_text_of_a_batch_can_end_as_banned(generator: Generator) -> None:
    """The shorter prompt has more unused tokens left. Each text equals the one generated alone."""
    options = decoding_options({**USED_UP, "decoding": "greedy", "num_sequences": 1, "max_new_tokens": 292})
    prompts = ["The", "The owl sold silence by the ounce and kept the scales in a quiet room."]
    together = generator.generate_batch([generator.fit(p, options, n) for n, p in enumerate(prompts)], options)
    assert [samples[0].finish_reason for samples in together] == ["length", "banned"]
    alone = [generator.generate(prompt, options)[0].ids for prompt in prompts]
    assert [samples[0].ids for samples in together] == alone


def test_text_is_empty_if_all_first_tokens_are_banned(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(logits: torch.Tensor, texts: object) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf)

    monkeypatch.setattr("gpt2tg.generation.generator.filter_chain", lambda *_: FilterChain([], [nothing], []))
    for settings in ({"decoding": "beam"}, {"decoding": "top_p", "seed": 1, "best_of": 3, "num_sequences": 1}):
        (sample,) = generator.generate("The fox", decoding_options(settings))
        assert (sample.completion, sample.ids, sample.finish_reason) == ("", (), "banned")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, r"^model_name 3 is not valid: give the name or the directory of a model$"),
        ({"name": None}, r"^model_name None is not valid"),
        ({"device": "gpu"}, r"^device gpu is not a device: use auto, cpu, cuda, cuda:N or mps$"),
        ({"device": None}, r"^device None is not valid: give a string$"),
        ({"precision": "int9"}, r"^precision int9 is unknown: did you mean int8\?$"),
        ({"precision": 8}, r"^precision 8 is not valid: give one of auto, fp32, fp16, int8$"),
    ],
)
def test_wrong_arguments_of_load_are_refused(model_dir: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(**{"name": str(model_dir), **arguments})


def test_load_takes_a_path(model_dir: Path) -> None:
    assert load(model_dir).model.shape == load(str(model_dir)).model.shape


@pytest.mark.parametrize("prompt", [3, None, b"The owl", ["The owl"]])
def test_prompt_of_another_type_is_refused(generator: Generator, prompt: object) -> None:
    with pytest.raises(UserError, match=r"^prompt .* is not valid: give a string$"):
        generator.generate(prompt, options("greedy"))


@pytest.mark.parametrize("settings", [None, {"seed": 1}, "greedy"])
def test_options_of_another_type_are_refused(generator: Generator, settings: object) -> None:
    with pytest.raises(UserError, match=r"^options .* is not valid: give DecodingOptions$"):
        generator.generate("The owl", settings)
