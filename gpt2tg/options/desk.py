"""The fields of requests of the page to write on. Those that are required must be given, whatever their default."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.fields import Options, option

LONGEST_TITLE = 200


@dataclass(frozen=True)
class NewText(Options):
    """A text to begin, with the `settings` chosen for it."""

    title: str = option("", "its title", group="request")
    text: str = option("", "what it begins with", group="request")


@dataclass(frozen=True)
class TextChange(Options):
    """A change of a text; its `settings` may be changed, too."""

    title: str | None = option(None, "its new title", group="request")
    current: int | None = option(None, "the node to show", group="request", low=1)


@dataclass(frozen=True)
class Edit(Options):
    """A change of the shown text."""

    node: int = option(1, "the node that was shown", group="request", low=1, is_required=True)
    text: str = option("", "its shown text now", group="request", is_required=True)
    version: int | None = option(
        None, "the version of the node that was changed; an older one makes a branch", group="request", low=0
    )


@dataclass(frozen=True)
class Choice(Options):
    """Another token to continue with."""

    node: int = option(1, "the node that holds the token", group="request", low=1, is_required=True)
    token: int = option(0, "the index of the token", group="request", low=0, is_required=True)
    alternative: int = option(0, "the index among its alternatives", group="request", low=0, is_required=True)


@dataclass(frozen=True)
class Continuation(Options):
    """A text to continue, with its `settings`."""

    node: int = option(1, "the node to continue", group="request", low=1, is_required=True)
    count: int = option(1, "the number of texts to choose from", group="request", low=1, high=8)
    alternatives: int = option(10, "most probable tokens to keep for each token", group="request", low=0, high=20)


@dataclass(frozen=True)
class NodeChange(Options):
    """A change of a node."""

    name: str | None = option(None, "the name of its branch; empty removes it", group="request")
    pruned: bool | None = option(None, "whether it is left out, with all that continues it", group="request")


@dataclass(frozen=True)
class ModelSwitch(Options):
    """The model to load."""

    name: str = option("", "its name, as in /api/state", group="request", is_required=True)


@dataclass(frozen=True)
class TextToScore(Options):
    """A text whose tokens are measured."""

    text: str = option("", "the text", group="request", is_required=True)
    alternatives: int = option(5, "most probable tokens to return for each token", group="request", low=0, high=20)


@dataclass(frozen=True)
class ComparisonRequest(Options):
    """Strategies to compare on a prompt, with the `settings` that they share."""

    prompt: str = option("", "the text to continue", group="request", is_required=True)
    strategies: str | None = option(None, "the strategies, as --strategies takes them", group="request")
    num_sequences: int = option(3, "texts of each strategy", group="request", low=1, high=8)
    max_new_tokens: int | None = option(None, "tokens of each text", group="request", low=1)


# The requests that may have `settings`, an object of decoding options by name.
WITH_SETTINGS: frozenset[type[Options]] = frozenset({NewText, TextChange, Continuation, ComparisonRequest})
