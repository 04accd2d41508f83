"""Write sample texts during training, with the decoders that generate from the model later."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.checkpoint.chat_template import ChatTemplate, TemplateRefusal
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.generation.generator import Generator
from gpt2tg.options import DecodingOptions, TrainingOptions
from gpt2tg.training.console import log
from gpt2tg.training.devices import preserved_random_state
from gpt2tg.training.model.build import engine_model
from gpt2tg.training.output.durable import write_text_file
from gpt2tg.training.output.layout import SAMPLES_FILE
from gpt2tg.training.stopwatch import Stopwatch

HEADING = re.compile(r"^## Step (\d+)$", re.MULTILINE)


def as_question(options: TrainingOptions, template: ChatTemplate | None) -> TrainingOptions:
    """Return the options with the prompt as a question in the template, if the run learns from conversations."""
    if template is None:
        return options
    try:
        prompt = template.prompt([{"role": "user", "content": options.prompt}])
    except TemplateRefusal as error:
        log.warning(f"samples continue --prompt as plain text: {error}")
        return options
    return replace(options, prompt=prompt)


class Samples(TrainerCallback):
    """Writes a few texts every `sample_steps` steps, to stderr and into samples.md.

    All samples use the same seed, so that only the model differs between them. A failed sample does not end the run,
    and samples leave the random state of the training as it was.
    """

    def __init__(
        self,
        options: TrainingOptions,
        tokenizer: TextTokenizer,
        directory: Path,
        stopwatch: Stopwatch,
    ) -> None:
        self._steps = options.sample_steps or 1
        self._prompt = options.prompt
        self._decoding = DecodingOptions(num_sequences=options.num_samples, seed=options.seed)
        self._tokenizer = tokenizer
        self._file = directory / SAMPLES_FILE
        self._stopwatch = stopwatch

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the samples of steps after the checkpoint: a resumed run writes them again."""
        if state.is_world_process_zero and self._file.is_file():
            text = self._file.read_bytes().decode(errors="replace")  # read_text would change line breaks in samples
            later = (match.start() for match in HEADING.finditer(text) if int(match[1]) > state.global_step)
            write_text_file(self._file, text[: next(later, len(text))])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self._steps or not state.is_world_process_zero:
            return
        with self._stopwatch.paused(), preserved_random_state(args.device):
            try:
                self._write(state.global_step, self._generate(model))
            except Exception as error:
                log.warning(f"no sample at step {state.global_step}: {type(error).__name__}: {error}")

    @torch.no_grad()
    def _generate(self, model: GPT2LMHeadModel) -> list[str]:
        generator = Generator(engine_model(model, self._tokenizer.end_id), self._tokenizer)
        # CUDA graphs would take memory that the training needs.
        generator.continuous_batches.are_used = generator.model.graph_capture.is_on = False
        return [sample.text for sample in generator.generate(self._prompt, self._decoding)]

    def _write(self, step: int, texts: list[str]) -> None:
        for text in texts:
            log.info(f"--- sample at step {step} ---\n{text}")
        parts = [f"## Step {step}", *("\n".join(f"> {line}" for line in text.split("\n")) for text in texts)]
        with self._file.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n\n".join(parts) + "\n\n")
