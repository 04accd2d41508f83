"""Generate texts for many prompts in batches, and resume an interrupted run."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tqdm import tqdm

from gpt2tg.batch.prompts import Prompt, trailing_spaces, with_template
from gpt2tg.batch.writers import Earlier, Inspect, open_sink, recorded_settings
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.requests import Request
from gpt2tg.generation.seeds import new_seed, with_seed
from gpt2tg.inspection.tables import token_table
from gpt2tg.options import DecodingOptions, PromptOptions, decoding_options

# The note on texts that --end_at_sentence could not shorten.
NO_SENTENCE = "no sentence is complete"


@dataclass(frozen=True)
class Job:
    """A prompt that still has to be continued, with its options."""

    request: Request
    options: DecodingOptions
    prompt: Prompt

    @property
    def is_answer(self) -> bool:
        """Whether the prompt is a conversation, so that only the answer is written."""
        return bool(self.prompt.messages)


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
        return Job(generator.fit(prompt.text, own, index), with_seed(own), prompt)
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


def write_job(
    generator: Generator, job: Job, write: Callable[[str], None], say: Callable[[str], None], inspect: Inspect = None
) -> None:
    """Stream a single text to `write`; with `inspect`, its token probabilities after it."""
    begins = job.is_answer  # an answer begins after the white space that the template leaves to the model
    if not job.is_answer:
        write(job.request.prompt)
    for chunk in generator.stream_batch([job.request], job.options):
        text = chunk.text.lstrip() if begins else chunk.text
        begins = begins and not text
        write(text)
        if chunk.sample and inspect is not None:
            write(f"\n\n{token_table(inspect(chunk.sample))}")
    write("\n")
    if chunk.sample and chunk.sample.is_unfinished:
        say(f"{NO_SENTENCE}: the text stays as it is")


def write_jobs(
    generator: Generator,
    jobs: Sequence[Job],
    where: PromptOptions,
    earlier: Earlier | None,
    say: Callable[[str], None],
    inspect: Inspect = None,
) -> None:
    """Write the texts of all jobs to the output that the options name, prompt by prompt."""
    if earlier is not None:
        earlier.truncate()
    sink = open_sink(where, say, inspect, {job.request.index: job.prompt for job in jobs if job.is_answer})
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
