"""The ways a command may end early without a bug of ours."""

from __future__ import annotations

import re


class UserError(ValueError):
    """Bad input: something the user can mend in the command or in a file it names.

    `option` is the name of the offending option without dashes; the command line shows it as a flag,
    the session and the Python API as a plain name.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        self.message = message
        self.option = option
        super().__init__(f"{option} {message}" if option else message)

    def as_flag(self) -> str:
        """The message as a person at a shell reads it."""
        return f"--{self.option} {self.message}" if self.option else self.message


class RunError(RuntimeError):
    """A run that started well and failed on its way: a full disk, logits that are not finite."""


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended. `is_saved` tells that it can be resumed where it ended."""

    def __init__(self, message: str, number: int, is_saved: bool = False) -> None:
        self.exit_code = 128 + number
        self.is_saved = is_saved
        super().__init__(message)


def one_line(error: object, longest: int = 200) -> str:
    """What an error of a library says, fit for a message of ours: its first line, nothing that cannot be seen."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character for character in first if character.isprintable()).strip()[:longest]


def masked(word: str) -> str:
    """A word of a command line as it may be shown: without the token in `hub_token=...`."""
    return re.sub(r"(\w+_token)=.+", r"\1=...", word, flags=re.DOTALL)
