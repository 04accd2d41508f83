"""Human text cut into passages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FABLES

from gpt2tg.comparison.reference import as_samples, cut_passages, prepare_human_text, spread_evenly
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions
from gpt2tg.reading import examples_of, read_examples, read_text


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_examples_are_split_as_for_training() -> None:
    text = "one\ntwo\n\n \nthree\n"
    assert examples_of(text, "line") == ["one", "two", "three"]
    assert examples_of(text, "paragraph") == ["one\ntwo", "three"]
    assert examples_of(text, "file") == [text]


def test_passages_begin_at_sentences_and_do_not_overlap(generator: Generator) -> None:
    text = "\n".join(FABLES)
    passages = cut_passages(generator, [text], 6, 12)
    end = 0
    assert len(passages) > 3
    for passage in passages:
        whole = passage.prompt + generator.tokenizer.decode(list(passage.ids))
        start = text.index(whole)
        assert start >= end
        assert start == 0 or text[:start].rstrip()[-1] in ".!?" or text[start - 1] == "\n"
        assert text[start + len(passage.prompt)].isspace()  # the prompt ends with a whole word
        assert len(passage.ids) == 12 or passage.has_ended
        end = start + len(whole)


def test_short_example_is_one_passage_with_end_of_text(generator: Generator) -> None:
    passages = cut_passages(generator, FABLES[:2], 5, 200)
    assert [passage.has_ended for passage in passages] == [True, True]
    assert [passage.ids[-1] for passage in passages] == [generator.tokenizer.end_id] * 2
    assert [passage.prompt + generator.tokenizer.decode(list(passage.ids)) for passage in passages] == FABLES[:2]


def test_end_of_a_long_example_is_not_a_passage(generator: Generator) -> None:
    """It would make human text seem shorter than it is."""
    (first, second) = cut_passages(generator, [f"{FABLES[0]} {FABLES[1]} {FABLES[2]}"], 6, 30)
    assert (first.has_ended, second.has_ended) == (False, False)
    assert (len(first.ids), len(second.ids)) == (30, 30)


def test_too_short_examples_give_no_passage(generator: Generator) -> None:
    assert cut_passages(generator, ["Oh.", "A fox."], 6, 40) == []


def test_passages_are_spread_evenly_over_the_text() -> None:
    assert spread_evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread_evenly(range(3), 5) == [0, 1, 2]


def test_passage_logprobs_equal_those_of_transformers(generator: Generator, reference: torch.nn.Module) -> None:
    for sample in as_samples(generator, cut_passages(generator, FABLES, 6, 12)):
        context = generator.encode(sample.prompt)
        ids = torch.tensor([[*context, *sample.ids]])
        with torch.no_grad():
            logprobs = reference(ids).logits[0, :-1].log_softmax(-1)
        own = logprobs.gather(1, ids[0, 1:, None])[len(context) - 1 :].sum()
        assert sample.logprob == pytest.approx(own.item(), abs=1e-3)
        assert sample.finish_reason == ("eos" if sample.ids[-1] == 0 else "length")


@pytest.mark.parametrize(
    ("content", "message"), [(b"caf\xe9", "is not UTF-8: byte 3"), (b" \n", "holds no text"), (None, "cannot be read")]
)
def test_unreadable_reference_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "human.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(path, "reference", "line", None, print)
    assert caught.value.option == "reference"


def test_reference_is_read_as_for_training(tmp_path: Path) -> None:
    path = tmp_path / "human.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(path, "reference") == "one\ntwo\n"


def test_too_short_reference_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="has no passage of 16 prompt tokens and 40 more") as caught:
        prepare_human_text(generator, ["A fox."], DecodingOptions(max_new_tokens=40), (), 3)
    assert caught.value.option == "reference"
