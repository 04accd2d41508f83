"""Generate the texts of planned jobs in batches and write them, in one process or in several."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from tqdm import tqdm

from gpt2tg.batch.earlier import Earlier
from gpt2tg.batch.jobs import Job
from gpt2tg.batch.rendering import Inspect, Render, Rendered, renderer
from gpt2tg.batch.writers import InOrder, RecordSink, Sink, open_sink
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.requests import Request
from gpt2tg.inspection.tables import token_table
from gpt2tg.io.processes import process_count
from gpt2tg.options import PromptOptions, decoding_options

# The note on texts that --end_at_sentence could not shorten.
NO_SENTENCE = "no sentence is complete"

# The most batches that a process takes at once.
MOST_BATCHES = 8


def write_job(
    generator: Generator, job: Job, write: Callable[[str], None], say: Callable[[str], None], inspect: Inspect = None
) -> None:
    """Stream a single text to `write`; with `inspect`, its token probabilities after it."""
    begins = bool(job.messages)  # an answer begins after the white space that the template leaves to the model
    if not job.messages:
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
    sink = open_sink(where, say, earlier)
    with _writing(sink, len(jobs), earlier, say) as put:
        for rendered in _texts(generator, jobs, where.batch_size, renderer(where, inspect)):
            put(rendered)


def write_jobs_together(
    generator: Generator,
    jobs: Sequence[Job],
    where: PromptOptions,
    earlier: Earlier | None,
    say: Callable[[str], None],
    inspect: Inspect = None,
) -> None:
    """Write the texts of all jobs as `write_jobs` does, but generate them in all processes of the launcher.

    The first process calls this, the others `help_to_write`.
    """
    from gpt2tg.batch.spread import spread

    sink = open_sink(where, say, earlier)
    if not isinstance(sink, RecordSink):
        sink = InOrder(sink, [job.request.index for job in jobs])
    with _writing(sink, len(jobs), earlier, say) as put:
        spread(
            tasks(jobs, where.batch_size, process_count()),
            _performer(generator, where, inspect),
            lambda result: put(Rendered(**result)),
        )


def help_to_write(generator: Generator, where: PromptOptions, inspect: Inspect = None) -> None:
    """Generate texts that the first process writes, until none is left to generate."""
    from gpt2tg.batch.spread import spread

    spread(None, _performer(generator, where, inspect))


def tasks(jobs: Iterable[Job], batch_size: int, processes: int) -> Iterator[dict[str, Any]]:
    """Yield tasks for processes, as JSON: jobs with the same options, in whole batches.

    The batches are those of a single process. A task is the smaller the fewer jobs are left, so that all processes
    finish at about the same time.
    """
    for options, alike in groupby(jobs, key=lambda job: job.options):
        left = [{"request": dataclasses.asdict(job.request), "messages": job.messages} for job in alike]
        together = max(1, batch_size // options.draws)
        while left:
            batches = min(max(1, len(left) // (2 * processes * together)), MOST_BATCHES)
            yield {"options": dataclasses.asdict(options), "jobs": left[: batches * together]}
            del left[: batches * together]


def _jobs_of(task: dict[str, Any]) -> Iterator[Job]:
    """Yield the jobs of a task."""
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in task["options"].items()}
    options = decoding_options(settings)
    for job in task["jobs"]:
        request = job["request"]
        yield Job(Request(**{**request, "ids": tuple(request["ids"])}), options, tuple(job["messages"]))


def _performer(
    generator: Generator, where: PromptOptions, inspect: Inspect
) -> Callable[[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Return the function that generates the texts of a task, and yields them as JSON."""
    render = renderer(where, inspect)

    def perform(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for rendered in _texts(generator, list(_jobs_of(task)), where.batch_size, render):
            yield dataclasses.asdict(rendered)

    return perform


def _texts(generator: Generator, jobs: Sequence[Job], batch_size: int, render: Render) -> Iterator[Rendered]:
    """Yield the texts of each job, generated together with those that have the same options."""
    messages = {job.request.index: job.messages for job in jobs}
    for options, alike in groupby(jobs, key=lambda job: job.options):
        for samples in generator.generate_each([job.request for job in alike], options, batch_size):
            yield render(samples, options, messages[samples[0].prompt_index])


@contextmanager
def _writing(
    sink: Sink, prompts: int, earlier: Earlier | None, say: Callable[[str], None]
) -> Iterator[Callable[[Rendered], None]]:
    """Yield the function that writes the texts of a prompt and shows the progress; finish the output at the end."""
    if earlier is not None:
        earlier.truncate()
    started, tokens, texts, unfinished = time.monotonic(), 0, 0, 0
    hidden = not sys.stderr.isatty() or prompts < 2
    with tqdm(total=prompts, desc="writing", unit=" prompts", disable=hidden) as bar:

        def put(rendered: Rendered) -> None:
            nonlocal tokens, texts, unfinished
            sink.put(rendered)
            tokens += rendered.tokens
            texts += len(rendered.texts)
            unfinished += rendered.unfinished
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            bar.update()

        yield put
    sink.close()
    if unfinished:
        say(f"{NO_SENTENCE} in {unfinished} of {texts} texts, which stay as they are")
