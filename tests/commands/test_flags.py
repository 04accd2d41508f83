"""The options that commands make from flags, and the notices about flags that they do not use."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.train import unused_flags
from gpt2tg.errors import UserError
from gpt2tg.options import ALL_IN_ONE_DEFAULTS, DecodingOptions, PromptOptions, TrainingOptions


def test_options_are_picked_from_their_own_flags() -> None:
    flags = Flags({"prompt": "The owl", "temperature": 0.5})
    assert flags.pick(PromptOptions) == PromptOptions(prompt="The owl")
    assert flags.decoding() == DecodingOptions(temperature=0.5)
    assert flags.names == {"prompt", "temperature"}


def test_flags_precede_the_defaults_of_a_script() -> None:
    flags = Flags({"num_sequences": 2, "decoding": "top_k"})
    found = flags.decoding(**ALL_IN_ONE_DEFAULTS)
    assert (found.decoding, found.num_sequences, found.max_length) == ("top_k", 2, 100)
    assert Flags({"max_new_tokens": 5}).decoding(**ALL_IN_ONE_DEFAULTS).max_length is None


def test_ignored_flags_cannot_contradict_others() -> None:
    flags = Flags({"decoding": "greedy", "num_sequences": 3})
    with pytest.raises(UserError, match="num_sequences 3 asked for"):
        flags.decoding()
    assert flags.decoding(without=("decoding",)) == DecodingOptions(num_sequences=3)


def test_notices_name_given_flags_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    given = frozenset({"overwrite", "prompt", "seed"})
    notice_unused(given, flags_of(PromptOptions), "a test uses no prompts")
    assert capsys.readouterr().err.splitlines() == [
        "--prompt is not used: a test uses no prompts",
        "--overwrite is not used: a test uses no prompts",
    ]


def test_flags_of_training_that_do_nothing_are_known(tmp_path: Path) -> None:
    assert "dataset_streaming" in unused_flags(TrainingOptions(dataset_name=str(tmp_path)))
    assert "dataset_streaming" not in unused_flags(TrainingOptions(dataset_name="owls/fables"))
    assert "adam_beta2" not in unused_flags(TrainingOptions(train_file="a.txt"))
    assert "adam_beta2" in unused_flags(TrainingOptions(train_file="a.txt", optim="adafactor"))
