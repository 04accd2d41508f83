"""Errors that end a command with one line for the user instead of a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: something that the user can correct in the command or in a file it names.

    `option` is the name of the option at fault, without dashes. The command line shows it as a flag, the session and
    the Python API as a plain name.
    """

    def __init__(self, message: str, option: str | None = None, value: object = None) -> None:
        """
        Args:
            value: the wrong value, if the message begins with it as Python writes it.
        """
        self.message = message
        self.option = option
        self.value = value
        super().__init__(f"{option} {message}" if option else message)

    def as_flag(self) -> str:
        """Return the message with the option as a flag, for the command line."""
        return f"--{self.option} {self.message}" if self.option else self.message


class RunError(RuntimeError):
    """A failure of a run that had started, such as a full disk or logits that are not finite."""


class ProcessError(RunError):
    """A failure in one of several processes. That process prints it itself: the first one knows nothing of it."""


class Interrupted(KeyboardInterrupt):
    """A signal that ended a run. With `is_saved` the run can be resumed from where it ended."""

    def __init__(self, message: str, number: int, is_saved: bool = False) -> None:
        self.exit_code = 128 + number
        self.is_saved = is_saved
        super().__init__(message)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most similar to a mistyped one; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return "did you mean ...?" with the most similar known word, or `otherwise` if none is similar."""
    found = nearest(word, known)
    return f"did you mean {found}?" if found else otherwise


def one_line(error: object, longest: int = 200) -> str:
    """Return the first line of a library's error, without unprintable characters, to quote it in a message of ours."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character for character in first if character.isprintable()).strip()[:longest]


def masked(word: str) -> str:
    """Return a word of a command line without the secret in `hub_token=...`."""
    return re.sub(r"(\w+_token)=.+", r"\1=...", word, flags=re.DOTALL)
