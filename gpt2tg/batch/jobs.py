"""Plan the texts of many prompts, and what an interrupted run has left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2tg.batch.earlier import Earlier
from gpt2tg.batch.prompts import Prompt, trailing_spaces, with_template
from gpt2tg.batch.rendering import recorded_settings
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.requests import Request
from gpt2tg.generation.seeds import new_seed, with_seed
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.reading.conversations import Message


@dataclass(frozen=True)
class Job:
    """A prompt that still has to be continued, with its options."""

    request: Request
    options: DecodingOptions
    messages: tuple[Message, ...] = ()
    """The conversation that the text answers, if it is not the continuation of a plain prompt."""


def plan_jobs(
    generator: Generator,
    prompts: Sequence[Prompt],
    options: DecodingOptions,
    earlier: Earlier | None,
    say: Callable[[str], None],
) -> list[Job]:
    """Fit all prompts into the context window before generating, and leave out those that an earlier run has done.

    Args:
        earlier: the records in the output file, if any.
        say: called with each notice for the user.

    Raises:
        UserError: a prompt leaves no room for new tokens, has an invalid setting, or the earlier run had other
            prompts or settings.
    """
    if line := trailing_spaces(["" if prompt.messages else prompt.text for prompt in prompts]):
        say(line)
    prompts = with_template(prompts, generator.chat)
    if replayed := options.replayed():
        prompts = _only(prompts, replayed[1])
        seed = None
    else:
        seed = options.seed if options.seed is not None else _seed_of(earlier, prompts)
    chosen = new_seed() if seed is None else seed
    jobs = [_job(generator, prompt, index, options, chosen, len(prompts)) for index, prompt in enumerate(prompts)]
    done = _done(earlier, jobs)
    jobs = [job for job in jobs if job.request.index not in done]
    if done:
        say(f"{len(done)} of {len(prompts)} prompts are done, {len(jobs)} to go")
    for job in jobs:
        if job.request.dropped:
            say(f"prompt {job.request.index + 1}: {job.request.dropped} tokens were dropped at its beginning")
    if options.seed is None and any(job.options.seed == chosen and job.options.strategy.samples for job in jobs):
        say(f"seed {chosen}: the same texts again with --seed {chosen}")
    return jobs


def _only(prompts: Sequence[Prompt], number: int) -> Sequence[Prompt]:
    """Return the prompt to replay. A single given prompt is that one, whatever its number was in the original run."""
    if len(prompts) == 1:
        return prompts
    if number >= len(prompts):
        raise UserError(f"names prompt {number}, but there are {len(prompts)}, counted from 0", "replay")
    return [prompts[number]]


def _seed_of(earlier: Earlier | None, prompts: Sequence[Prompt]) -> int | None:
    """Return the seed that the earlier run chose when it began; None if it drew nothing."""
    for entry in earlier.records if earlier else []:
        index, seed = entry["prompt_index"], entry["seed"]
        if seed is not None and index < len(prompts) and "seed" not in prompts[index].settings:
            return int(seed)
    return None


def _job(generator: Generator, prompt: Prompt, index: int, options: DecodingOptions, seed: int, prompts: int) -> Job:
    common = _common_settings(options, prompt)
    if options.replay is None and "replay" not in prompt.settings:
        common["seed"] = seed
    try:
        own = decoding_options({**common, **prompt.settings})
        if prompt.messages:
            own = dataclasses.replace(own, stop=(*own.stop, *generator.chat.stop))
        return Job(generator.fit(prompt.text, own, index), with_seed(own), prompt.messages)
    except UserError as error:
        if prompts == 1:
            raise
        raise UserError(f"prompt {index + 1}: {error}", "prompts_file") from None


def _common_settings(options: DecodingOptions, prompt: Prompt) -> dict[str, object]:
    """Return the options of the run, without its length if the prompt has one: the two kinds exclude each other."""
    common = dict(vars(options))
    if "max_new_tokens" in prompt.settings or "max_length" in prompt.settings:
        common |= {"max_new_tokens": None, "max_length": None}
    return common


def _done(earlier: Earlier | None, jobs: Sequence[Job]) -> set[int]:
    """Return the prompts whose texts are in the output already.

    Raises:
        UserError: they belong to other prompts, other settings or another seed.
    """
    by_index = {job.request.index: job for job in jobs}
    for number, entry in enumerate(earlier.records if earlier else [], start=1):
        job = by_index.get(entry["prompt_index"])
        if job is None or entry["prompt"] != job.request.prompt:
            difference = "another prompt"
        elif entry["settings"] != recorded_settings(job.options):
            own = recorded_settings(job.options)
            name = next(name for name in own if entry["settings"].get(name) != own[name])
            difference = f"{name} {entry['settings'].get(name)}, not {own[name]}"
        elif entry["seed"] not in (None, job.options.seed):
            difference = f"seed {entry['seed']}, not {job.options.seed}"
        else:
            continue
        raise UserError(
            f"{earlier.path if earlier else ''} belongs to another run: line {number} has {difference}; "
            "choose another file, or replace it with --overwrite",
            "output",
        )
    return {entry["prompt_index"] for entry in earlier.records} if earlier else set()
