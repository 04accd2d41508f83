"""The flags of a command line, from which each command makes its typed options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gpt2tg import cli
from gpt2tg.io.streams import notice
from gpt2tg.options import DecodingOptions, InspectionOptions, Options, PromptOptions, decoding_options, only

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Flags:
    """The flags that were given, by option name. Only `from_flags` of the commands reads them."""

    values: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str]:
        """The options that were given."""
        return frozenset(self.values)

    def pick(self, options: type[OptionsT], **defaults: Any) -> OptionsT:
        """Build an options dataclass from the flags that belong to it.

        Args:
            defaults: replace those of the dataclass; names that it lacks are ignored.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        return cli.pick(options, dict(self.values), **defaults)

    def decoding(self, without: Collection[str] = (), **defaults: Any) -> DecodingOptions:
        """Build the decoding options, as `pick` does.

        Args:
            without: flags that are ignored.
        """
        given = {name: value for name, value in only(DecodingOptions, dict(self.values)).items() if name not in without}
        return decoding_options(given, **only(DecodingOptions, defaults))


def flags_of(options: type[Options]) -> list[str]:
    """Return the names of an options dataclass, in its order."""
    return [field.name for field in dataclasses.fields(options)]


def inspection_flags(without: Collection[str]) -> list[str]:
    """Return the flags that --score and --candidates take, without those that are used."""
    names = (name for options in (DecodingOptions, InspectionOptions, PromptOptions) for name in flags_of(options))
    return [name for name in names if name not in without]


def notice_unused(given: Collection[str], names: Iterable[str], why: str) -> None:
    """Print a notice for each of the flags that was given, and that the command does not use."""
    for name in names:
        if name in given:
            notice(f"{cli.flag(name)} is not used: {why}")
