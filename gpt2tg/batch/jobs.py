"""Writing texts to many prompts: in batches, to where they are wanted, going on where an earlier run ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tqdm import tqdm

from gpt2tg.batch.prompts import Prompt, trailing_spaces
from gpt2tg.batch.writers import Earlier, Inspect, open_sink, settings
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Request, new_seed, with_seed
from gpt2tg.inspection.tables import token_table
from gpt2tg.options import DecodingOptions, PromptOptions, decoding_options

# What becomes of a text that is cut short before a sentence ends, with --end_at_sentence.
NO_SENTENCE = "no sentence is complete"


@dataclass(frozen=True)
class Job:
    """A prompt that still has to be continued, and how."""

    request: Request
    options: DecodingOptions


def plan_jobs(
    generator: Generator,
    prompts: Sequence[Prompt],
    options: DecodingOptions,
    earlier: Earlier | None,
    say: Callable[[str], None],
) -> list[Job]:
    """Fit every prompt to the model before the first is continued, and leave out what an earlier run has done.

    Raises:
        UserError: a prompt that leaves no room, a setting of its own that is none, or an earlier run of another
            command.
    """
    if line := trailing_spaces([prompt.text for prompt in prompts]):
        say(line)
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
    """The prompt whose text is written again; a single one may have had any number."""
    if len(prompts) == 1:
        return prompts
    if number >= len(prompts):
        raise UserError(f"names prompt {number}, but there are {len(prompts)}, counted from 0", "replay")
    return [prompts[number]]


def _seed_of(earlier: Earlier | None, prompts: Sequence[Prompt]) -> int | None:
    """A run without a seed of its own goes on with the one that was chosen when it began."""
    for entry in earlier.records if earlier else []:
        index = entry["prompt_index"]
        if entry["seed"] is not None and index < len(prompts) and "seed" not in prompts[index].settings:
            return entry["seed"]
    return None


def _job(generator: Generator, prompt: Prompt, index: int, options: DecodingOptions, seed: int, prompts: int) -> Job:
    ground = _lengths_apart(options, prompt)
    if options.replay is None and "replay" not in prompt.settings:
        ground["seed"] = seed
    try:
        own = decoding_options({**ground, **prompt.settings})
        return Job(generator.fit(prompt.text, own, index), with_seed(own))
    except UserError as error:
        if prompts == 1:
            raise
        raise UserError(f"prompt {index + 1}: {error}", "prompts_file") from None


def _lengths_apart(options: DecodingOptions, prompt: Prompt) -> dict[str, object]:
    """The options of the run as a ground for those of the prompt: a length of its own takes the place of the other."""
    ground = dict(vars(options))
    if "max_new_tokens" in prompt.settings or "max_length" in prompt.settings:
        ground |= {"max_new_tokens": None, "max_length": None}
    return ground


def _done(earlier: Earlier | None, jobs: Sequence[Job]) -> set[int]:
    """The prompts whose texts stand in the output already.

    Raises:
        UserError: they were written to other prompts, with other settings or another seed.
    """
    by_index = {job.request.index: job for job in jobs}
    for number, entry in enumerate(earlier.records if earlier else [], start=1):
        job = by_index.get(entry["prompt_index"])
        if job is None or entry["prompt"] != job.request.prompt:
            difference = "another prompt"
        elif entry["settings"] != settings(job.options):
            own = settings(job.options)
            name = next(name for name in own if entry["settings"].get(name) != own[name])
            difference = f"{name} {entry['settings'].get(name)}, not {own[name]}"
        elif entry["seed"] not in (None, job.options.seed):
            difference = f"seed {entry['seed']}, not {job.options.seed}"
        else:
            continue
        raise UserError(
            f"{earlier.path if earlier else ''} is of another run: line {number} has {difference}; "
            "choose another file, or replace it with --overwrite",
            "output",
        )
    return {entry["prompt_index"] for entry in earlier.records} if earlier else set()


def write_one(
    generator: Generator, job: Job, write: Callable[[str], None], say: Callable[[str], None], inspect: Inspect = None
) -> None:
    """The one text that is wanted, piece by piece as it is written, and its probabilities where they are wanted."""
    write(job.request.prompt)
    for chunk in generator.stream_batch([job.request], job.options):
        write(chunk.text)
        if chunk.sample and inspect is not None:
            write(f"\n\n{token_table(inspect(chunk.sample))}")
    write("\n")
    if chunk.sample and chunk.sample.is_unfinished:
        say(f"{NO_SENTENCE}: the text stays as it is")


def write_all(
    generator: Generator,
    jobs: Sequence[Job],
    where: PromptOptions,
    earlier: Earlier | None,
    say: Callable[[str], None],
    inspect: Inspect = None,
) -> None:
    """The texts of all jobs, prompt by prompt, to where they are wanted."""
    if earlier is not None:
        earlier.drop_the_rest()
    sink = open_sink(where, say, inspect)
    started, tokens, texts, unfinished = time.monotonic(), 0, 0, 0
    hidden = not sys.stderr.isatty() or len(jobs) < 2
    with tqdm(total=len(jobs), desc="writing", unit=" prompts", disable=hidden) as bar:
        for options, alike in groupby(jobs, key=lambda job: job.options):
            requests = [job.request for job in alike]
            for samples in generator.generate_each(requests, options, where.batch_size):
                sink.put(samples, options)
                tokens += sum(len(sample.ids) for sample in samples)
                texts += len(samples)
                unfinished += sum(sample.is_unfinished for sample in samples)
                bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
                bar.update()
    sink.close()
    if unfinished:
        say(f"{NO_SENTENCE} in {unfinished} of {texts} texts, which stay as they are")
