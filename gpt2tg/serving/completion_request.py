"""Read the body of a request to `/v1/completions`: every field is checked, and a wrong one is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.options import CompletionOptions, DecodingOptions, decoding_options, only, unused_options, why_unused
from gpt2tg.options.completions import LARGEST_LOGIT_BIAS, OPENAI_DEFAULTS, OPENAI_NAMES
from gpt2tg.serving.bodies import read_object
from gpt2tg.serving.errors import ApiError, from_user_error

DECODING_FIELDS = frozenset(field.name for field in dataclasses.fields(DecodingOptions))
API_FIELDS = frozenset(field.name for field in dataclasses.fields(CompletionOptions))

# Fields that are checked here, because they take values of several types.
OTHER_FIELDS = frozenset({"prompt", "logit_bias", "stream_options"})

FIELDS = DECODING_FIELDS | API_FIELDS | OTHER_FIELDS | OPENAI_NAMES.keys()

# Each string is looked for after every token, while all texts of the batch wait.
MOST_STRINGS = 64

Prompt = str | list[int]


@dataclass(frozen=True)
class CompletionRequest:
    """A request with valid fields. Whether it suits the model is not known yet."""

    prompts: Sequence[Prompt]
    options: DecodingOptions
    api: CompletionOptions
    logit_bias: Mapping[int, float]
    include_usage: bool
    is_prompt_only: bool
    """Whether nothing is generated, since `max_tokens` is 0: the prompt comes back, with its log-probabilities."""
    warnings: Sequence[str]
    """Fields that have no effect, and why."""
    names: Mapping[str, str]
    """The names that the request used for our options, for messages."""


def read_request(body: bytes, defaults: Mapping[str, Any]) -> CompletionRequest:
    """Read the body of a request.

    Args:
        defaults: decoding options for what the request leaves out.

    Raises:
        ApiError: the body is not JSON, or a field is unknown or has a wrong value.
    """
    given = _read_object(body)
    ours = {OPENAI_NAMES.get(name, name): value for name, value in given.items()}
    names = {ours: openai for openai, ours in OPENAI_NAMES.items() if openai in given or ours not in given}
    try:
        api = CompletionOptions(**only(CompletionOptions, ours))
        is_prompt_only = _is_prompt_only(ours, api)
        decoding, options = _decoding(ours, defaults)
        warnings = tuple(
            f"{names.get(name, name)} is not used: {why_unused(name, options)}".replace("--", "")
            for name in unused_options(decoding, options)
        )
    except UserError as error:
        raise from_user_error(error, names) from None
    _check_combination(api, options)
    return CompletionRequest(
        _prompts(given.get("prompt", "")),
        options,
        api,
        _logit_bias(given.get("logit_bias", {})),
        _include_usage(given.get("stream_options"), api),
        is_prompt_only,
        warnings,
        names,
    )


def _read_object(body: bytes) -> dict[str, Any]:
    """Return the fields of a body that are not null."""
    value = read_object(body, FIELDS)
    for name in value:
        if name in OPENAI_NAMES and OPENAI_NAMES[name] in value:
            raise ApiError(400, f"{name} and {OPENAI_NAMES[name]} are the same: give one of the two", name)
    return {name: part for name, part in value.items() if part is not None}


def _is_prompt_only(given: dict[str, Any], api: CompletionOptions) -> bool:
    """Whether `max_tokens` is 0, which is then taken out of the fields: our options have no such length."""
    length = given.get("max_new_tokens")
    if length != 0 or isinstance(length, (bool, float)):
        return False
    if not api.echo or api.stream:
        raise UserError("0 is for requests with echo and without stream: it returns the prompt alone", "max_new_tokens")
    del given["max_new_tokens"]
    return True


def _decoding(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], DecodingOptions]:
    """Return the decoding options that were given, and all with the defaults."""
    found = only(DecodingOptions, given)
    if isinstance(found.get("stop"), str):
        found["stop"] = (found["stop"],)
    if "stop" in found and not found["stop"]:
        del found["stop"]  # as OpenAI's API reads an empty list
    merged = {**OPENAI_DEFAULTS, **defaults}
    if "best_of" in found and "num_sequences" not in found:
        merged["num_sequences"] = 1
    return found, with_defaults(found, merged)


def with_defaults(found: dict[str, Any], defaults: Mapping[str, Any]) -> DecodingOptions:
    """Return the decoding options of a request: a field that was given replaces a default that contradicts it.

    Raises:
        UserError: a value is wrong, or fields contradict each other.
    """
    merged = dict(defaults)
    for length, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
        if length in found:
            merged.pop(other, None)
    if found.get("replay") is not None:
        merged.pop("seed", None)
    return decoding_options(found, **merged)


def _check_combination(api: CompletionOptions, options: DecodingOptions) -> None:
    if api.suffix:
        raise ApiError(400, "suffix is not supported: GPT-2 only continues texts", "suffix", "unsupported")
    for name in ("stop", "ban_words", "bias"):
        if (count := len(getattr(options, name))) > MOST_STRINGS:
            raise ApiError(400, f"{name} has {count:,} strings: give at most {MOST_STRINGS}", name, "invalid_value")
    if api.stream and options.draws != options.sequences:
        raise ApiError(400, "best_of needs all texts before the best is known: leave out stream", "best_of")
    if api.stream and api.logprobs is not None and (options.strategy.beams or options.decoding == "contrastive"):
        raise ApiError(400, f"logprobs with decoding {options.decoding} is for requests without stream", "logprobs")


def _prompts(value: Any) -> list[Prompt]:
    """Return the prompts of a request: a text, token ids, or several of either."""
    if isinstance(value, str) or (_is_ids(value) and value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(part, str) or (_is_ids(part) and part) for part in value):
        return value
    raise ApiError(400, "prompt is not valid: give a string, token ids, or a list of either", "prompt", "invalid_type")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, int) and not isinstance(part, bool) for part in value)


def _logit_bias(value: Any) -> dict[int, float]:
    """Return what to add to the logits of which tokens."""
    wrong = ApiError(
        400,
        f"logit_bias is not valid: give token ids with numbers from -{LARGEST_LOGIT_BIAS} to {LARGEST_LOGIT_BIAS}",
        "logit_bias",
        "invalid_value",
    )
    if not isinstance(value, dict):
        raise wrong
    found = {}
    for token, bias in value.items():
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not (token.isascii() and token.isdecimal() and len(token) < 10 and is_number):
            raise wrong
        if not abs(bias) <= LARGEST_LOGIT_BIAS:
            raise wrong
        found[int(token)] = float(bias)
    return found


def _include_usage(value: Any, api: CompletionOptions) -> bool:
    if value is None:
        return False
    if not api.stream:
        raise ApiError(400, "stream_options is for requests with stream", "stream_options")
    known = {"include_usage", "include_obfuscation"}
    if not isinstance(value, dict) or not set(value) <= known or not all(isinstance(v, bool) for v in value.values()):
        raise ApiError(400, 'stream_options is not valid: give {"include_usage": true}', "stream_options")
    return bool(value.get("include_usage", False))
