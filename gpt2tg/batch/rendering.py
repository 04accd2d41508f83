"""Render texts as they are written: as plain text or as JSON records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2tg.generation.samples import Sample
from gpt2tg.inspection.tables import token_entry, token_table
from gpt2tg.inspection.tokens import InspectedToken
from gpt2tg.options import DecodingOptions, PromptOptions
from gpt2tg.reading.conversations import ASSISTANT, Message

# A function that returns the token probabilities of a sample, or None if they are not to be written.
Inspect = Callable[[Sample], Sequence[InspectedToken]] | None


@dataclass(frozen=True)
class Rendered:
    """The texts of one prompt as they are written, with their counts. All fields can be stored as JSON."""

    index: int
    """The number of the prompt in its run."""
    texts: list[str]
    tokens: int
    """The number of new tokens in all texts."""
    unfinished: int
    """The number of texts that `--end_at_sentence` could not shorten."""


# A conversation that texts answer; empty if they continue a plain prompt.
Messages = Sequence[Message]

# A function that renders the samples of one prompt.
Render = Callable[[Sequence[Sample], DecodingOptions, Messages], Rendered]


def renderer(options: PromptOptions, inspect: Inspect = None) -> Render:
    """Return the function that renders samples in the format of the options."""

    def as_record(sample: Sample, texts: int, decoding: DecodingOptions, messages: Messages) -> str:
        entry = record(sample, texts, decoding)
        if messages:
            entry["messages"] = [*messages, {"role": ASSISTANT, "content": sample.completion.strip()}]
        if inspect is not None:
            entry["tokens"] = [token_entry(token) for token in inspect(sample)]
        return json.dumps(entry, ensure_ascii=False) + "\n"

    def as_text(sample: Sample, texts: int, decoding: DecodingOptions, messages: Messages) -> str:
        text = sample.completion.strip() if messages else sample.text
        return text if inspect is None else f"{text}\n\n{token_table(inspect(sample))}"

    one = as_record if options.format == "jsonl" else as_text

    def render(samples: Sequence[Sample], decoding: DecodingOptions, messages: Messages) -> Rendered:
        texts = [one(sample, len(samples), decoding, messages) for sample in samples]
        tokens, unfinished = (sum(len(s.ids) for s in samples), sum(s.is_unfinished for s in samples))
        return Rendered(samples[0].prompt_index, texts, tokens, unfinished)

    return render


def record(sample: Sample, texts: int, options: DecodingOptions) -> dict[str, Any]:
    """Return a text as a JSON object. `texts` is the number of texts of its prompt."""
    entry = {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "prompt_index": sample.prompt_index,
        "sample": sample.index,
        "texts": texts,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": len(sample.ids),
        "finish_reason": sample.finish_reason,
        "seed": sample.seed,
        "replay": sample.replay,
        "logprob": sample.logprob,
        "settings": recorded_settings(options),
    }
    if options.end_at_sentence:
        entry["unfinished"] = sample.is_unfinished
    return entry if sample.ranking_score is None else {**entry, "ranking_score": sample.ranking_score}


def recorded_settings(options: DecodingOptions) -> dict[str, Any]:
    """Return the options as a JSON object, with the defaults of the strategy filled in.

    The seed is left out, since records have a field for it, and so is what changes only the speed.
    """
    values = dataclasses.asdict(options)
    values |= {"top_k": options.effective_top_k, "top_p": options.effective_top_p}
    kept = {name: value for name, value in values.items() if name not in ("seed", "replay", "prompt_lookup")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
