"""Choose among the commands that share the flags of generation: list checkpoints, score, candidates, generate."""

from __future__ import annotations

from typing import Any

from gpt2tg.commands.candidates import CandidatesCommand, candidates
from gpt2tg.commands.flags import Flags
from gpt2tg.commands.generate import GenerateCommand, generate
from gpt2tg.commands.list_checkpoints import list_checkpoints
from gpt2tg.commands.loading import ModelChoice
from gpt2tg.commands.score import ScoreCommand, score
from gpt2tg.options import CheckpointOptions, InspectionOptions


def generate_or_inspect(flags: Flags, name: str, option: str, **defaults: Any) -> None:
    """Run the command that the flags ask for; generate if they ask for no other.

    Args:
        name: the name of the model, which was written after the flag `option`.
        defaults: the defaults of the script, by option name.
    """
    inspection = flags.pick(InspectionOptions)
    if flags.pick(CheckpointOptions).list:
        list_checkpoints(name, option)
        return
    model = ModelChoice.from_flags(flags, name, option)
    if inspection.score is not None:
        score(model, ScoreCommand.from_flags(flags))
    elif inspection.candidates is not None:
        candidates(model, CandidatesCommand.from_flags(flags))
    else:
        generate(model, GenerateCommand.from_flags(flags, **defaults))
