"""Errors as one line: the option at fault, suggestions for mistyped words, secrets and foreign messages."""

from __future__ import annotations

import pytest

from gpt2tg.errors import Interrupted, UserError, did_you_mean, masked, nearest, one_line


def test_error_names_its_option_as_name_and_as_flag() -> None:
    error = UserError("0 is out of range", "top_k")
    assert (str(error), error.as_flag(), error.option) == (
        "top_k 0 is out of range",
        "--top_k 0 is out of range",
        "top_k",
    )
    assert UserError("no such file").as_flag() == "no such file"


def test_exit_code_of_a_signal_is_128_plus_its_number() -> None:
    assert Interrupted("terminated", 15).exit_code == 143
    assert not Interrupted("terminated", 15).is_saved


@pytest.mark.parametrize(
    ("word", "found"), [("temprature", "temperature"), ("top_q", "top_p"), ("zzz", None), ("", None)]
)
def test_nearest_known_word(word: str, found: str | None) -> None:
    known = {"temperature": 1, "top_p": 2}
    assert nearest(word, known) == found
    assert did_you_mean(word, known, "see the list") == (f"did you mean {found}?" if found else "see the list")


def test_first_printable_line_of_a_foreign_error() -> None:
    assert one_line(ValueError("\n  bad\x1b[31m header\nmore")) == "bad[31m header"
    assert one_line(ValueError("")) == "ValueError"
    assert len(one_line("x" * 500)) == 200


def test_token_is_masked() -> None:
    assert masked("hub_token=hf_secret\nmore") == "hub_token=..."
    assert masked("adam_beta1=0.8") == "adam_beta1=0.8"
