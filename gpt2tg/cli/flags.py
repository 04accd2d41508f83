"""A flag: the field of an option class as the command line shows and reads it."""

from __future__ import annotations

import dataclasses
from dataclasses import Field, dataclass
from typing import Any

from gpt2tg.cli.words import Values, as_utf8, is_utf8_in_this_locale
from gpt2tg.errors import UserError
from gpt2tg.io.streams import notice, printable
from gpt2tg.options import Options, number_from, plain_type
from gpt2tg.options.escapes import read_escapes

# Directories that libraries outside Python open too. These accept only UTF-8 names.
OPENED_BY_LIBRARIES = ("model_name", "model_path", "adapter", "merge", "output_dir", "resume")


def flag(name: str) -> str:
    """Return the flag of an option. An option named like a Python keyword, as `try_`, has an underscore at its end."""
    return f"--{name.rstrip('_')}"


@dataclass(frozen=True)
class Meaning:
    """What a flag does in one task of a script: its help text and its default there."""

    field: Field[Any]
    default: Any
    task: str | None

    @property
    def help(self) -> str:
        """What the flag does."""
        rule = self.field.metadata
        return f"{', '.join(rule['choices'])}: {rule['help']}" if rule["choices"] and rule["metavar"] else rule["help"]

    @property
    def shown_default(self) -> str:
        """The default as the help shows it; "required" for a flag that has to be given."""
        rule, default = self.field.metadata, self.default
        is_own = default is None or default == self.field.default
        if rule["is_required"] and is_own:
            return "required"
        if rule["shown_default"] and is_own:
            return str(rule["shown_default"])
        if isinstance(default, bool):
            return "off"
        return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)

    def described(self, task: str | None) -> str:
        """Return the help text with the default, for the help of one task, or for that of all tasks."""
        if isinstance(self.default, bool):
            return self.help
        if self.shown_default == "required":
            where = f" with --task {self.task}" if self.task and task is None else ""
            return f"{self.help} (required{where})"
        return f"{self.help} (default: {self.shown_default})"


@dataclass
class Flag:
    """A flag of a script. If several tasks have a flag of this name, `meanings` has one entry for each of them."""

    options: type[Options]
    field: Field[Any]
    meanings: list[Meaning] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The flag as it is typed, with dashes."""
        return flag(self.field.name)

    @property
    def kind(self) -> type:
        """The plain type of its value."""
        return plain_type(self.options, self.field.name)

    @property
    def takes(self) -> Values:
        """How many values follow it."""
        if self.kind is bool:
            return "none"
        if self.field.metadata["flag_value"] is not None:
            return "optional"
        return "several" if self.kind is tuple else "one"

    @property
    def value(self) -> str:
        """The placeholder for its value in the help; empty for a switch."""
        rule = self.field.metadata
        plain = rule["metavar"] or ("|".join(rule["choices"]) if rule["choices"] else None)
        plain = plain or {int: "N", float: "X"}.get(self.kind, "TEXT")
        return {"none": "", "optional": f"[{plain}]", "several": f"{plain} [{plain} ...]"}.get(self.takes, plain)

    def in_task(self, task: str | None) -> list[Meaning]:
        """Return what the flag means in a task, or in every task for None; empty if the task does not have it."""
        return [meaning for meaning in self.meanings if task is None or meaning.task in (task, None)]

    def help(self, task: str | None = None) -> str:
        """Return what the flag does with its default, and what it does in other tasks if that differs."""
        first, *others = self.in_task(task)
        text = first.described(task)
        different = [meaning for meaning in others if meaning.described(task) != text]
        return "; ".join([text, *(f"with --task {each.task}: {each.described(task)}" for each in different)])

    def read(self, values: list[str]) -> Any:
        """Return the value of the option that the words after the flag give.

        Raises:
            UserError: there is no value, or one too many; or a value is not UTF-8, not a number, or empty.
        """
        if self.takes == "none":
            if values:
                raise UserError(f"takes no value, but {values[0]} was given", self.field.name)
            return True
        if not values:
            if self.takes != "optional":
                raise UserError("needs a value after it", self.field.name.rstrip("_"))
            return self.field.metadata["flag_value"]
        read = tuple(self._read_word(word) for word in values)
        return read if self.kind is tuple else read[0]

    def _read_word(self, word: str) -> Any:
        name, is_text = self.field.name.rstrip("_"), self.field.metadata["is_text"]
        try:
            text = as_utf8(word)
        except UnicodeError:
            shown, way_out = printable(word)[:80], "write it" if is_text else "rename the file, or write it"
            raise UserError(f"is not UTF-8: {shown}; {way_out} in UTF-8", name) from None
        if self.kind in (int, float):
            return number_from(text, self.kind, name)
        if not is_text:
            if not word:
                raise UserError("is empty: give a value, or leave out the flag", name)
            if name in OPENED_BY_LIBRARIES and not is_utf8_in_this_locale(word):
                raise UserError(f"{text} cannot be opened in this locale: set PYTHONUTF8=1, or rename it", name)
            return word  # a file name, encoded as the locale does: it may be other bytes than UTF-8
        if name == "prompt" and read_escapes(text) != text:
            notice(r"--prompt: \n is read as a line break, \t as a tab; write \\n for a backslash and an n")
        return read_escapes(text)
