"""The fields of a request to `/v1/completions` that are not decoding options, and those that OpenAI names otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.fields import Options, option

# OpenAI's names -> ours.
OPENAI_NAMES = {"max_tokens": "max_new_tokens", "n": "num_sequences"}

# What OpenAI takes where a request says nothing. The other defaults are those of the command line.
OPENAI_DEFAULTS = {"max_new_tokens": 16, "num_sequences": 1}

# The largest bias of a token; the smallest one is its negative.
LARGEST_LOGIT_BIAS = 100

MOST_LOGPROBS = 5


@dataclass(frozen=True)
class CompletionOptions(Options):
    """What is to be returned for the texts of a request."""

    model: str | None = option(None, "the name of the model, as in /v1/models", group="request")
    echo: bool = option(False, "return the prompt before the completion", group="request")
    logprobs: int | None = option(
        None,
        "return the log-probability of each token, and the most probable N tokens in its place",
        group="request",
        low=0,
        high=MOST_LOGPROBS,
    )
    stream: bool = option(False, "send the texts piece by piece, as server-sent events", group="request")
    user: str | None = option(None, "accepted, and not used", group="request")
    suffix: str | None = option(None, "not supported", group="request")
