"""Human text cut into pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FABLES

from gpt2tg.comparison.reference import as_samples, pieces_of, spread
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.reading import examples_of, read_examples, read_text


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_examples_are_those_of_training() -> None:
    text = "one\ntwo\n\n \nthree\n"
    assert examples_of(text, "line") == ["one", "two", "three"]
    assert examples_of(text, "paragraph") == ["one\ntwo", "three"]
    assert examples_of(text, "file") == [text]


def test_pieces_are_the_text_from_a_beginning_and_do_not_overlap(generator: Generator) -> None:
    text = "\n".join(FABLES)
    pieces = pieces_of(generator, [text], 6, 12)
    end = 0
    assert len(pieces) > 3
    for piece in pieces:
        whole = piece.prompt + generator.tokenizer.decode(list(piece.ids))
        start = text.index(whole)
        assert start >= end
        assert start == 0 or text[:start].rstrip()[-1] in ".!?" or text[start - 1] == "\n"
        assert text[start + len(piece.prompt)].isspace()  # the prompt ends with a whole word
        assert len(piece.ids) == 12 or piece.has_ended
        end = start + len(whole)


def test_a_short_example_is_a_piece_that_ends_and_says_so(generator: Generator) -> None:
    pieces = pieces_of(generator, FABLES[:2], 5, 200)
    assert [piece.has_ended for piece in pieces] == [True, True]
    assert [piece.ids[-1] for piece in pieces] == [generator.tokenizer.end_id] * 2
    assert [piece.prompt + generator.tokenizer.decode(list(piece.ids)) for piece in pieces] == FABLES[:2]


def test_the_end_of_a_long_example_is_no_piece(generator: Generator) -> None:
    """Were it one, human texts would seem shorter than they are."""
    (first, second) = pieces_of(generator, [f"{FABLES[0]} {FABLES[1]} {FABLES[2]}"], 6, 30)
    assert (first.has_ended, second.has_ended) == (False, False)
    assert (len(first.ids), len(second.ids)) == (30, 30)


def test_examples_too_short_give_no_piece(generator: Generator) -> None:
    assert pieces_of(generator, ["Oh.", "A fox."], 6, 40) == []


def test_pieces_evenly_over_the_text() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


def test_log_probabilities_of_pieces_are_those_of_transformers(
    generator: Generator, reference: torch.nn.Module
) -> None:
    for sample in as_samples(generator, pieces_of(generator, FABLES, 6, 12)):
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
def test_files_that_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "human.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(path, "reference", "line", None, print)
    assert caught.value.option == "reference"


def test_files_are_read_as_for_training(tmp_path: Path) -> None:
    path = tmp_path / "human.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(path, "reference") == "one\ntwo\n"
