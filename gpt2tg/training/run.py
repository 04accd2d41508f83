"""A training run: its steps from reading the input to publishing the model."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import release_memory
from transformers import GPT2LMHeadModel, TrainerCallback, TrainerState, TrainingArguments

from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG
from gpt2tg.checkpoint.hub import hub_commit
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import Interrupted, RunError, UserError
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.io.processes import is_main_process
from gpt2tg.options import DEFAULT_MAX_LENGTH, NEWEST, TrainingOptions
from gpt2tg.training.arguments import training_arguments
from gpt2tg.training.checks import check_existing, check_layers
from gpt2tg.training.compiling import cause_of, forget_compiled, is_compile_error, is_compiled
from gpt2tg.training.console import log, print_result
from gpt2tg.training.data.advice import advice
from gpt2tg.training.data.batches import collate
from gpt2tg.training.data.held_back import load_test, scan_test
from gpt2tg.training.data.sources import Sources, plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.devices import bytes_of_other_processes, device_bytes, reset_peak_memory
from gpt2tg.training.final_test import measure_test
from gpt2tg.training.flow import FlowControl
from gpt2tg.training.interruption import Interruption
from gpt2tg.training.log_history import held_step, is_out_of_patience
from gpt2tg.training.model.build import existing_model, new_model, shape_of_model
from gpt2tg.training.model.copied_files import CopiedFiles, files_to_copy
from gpt2tg.training.model.cpu_speedups import keep_freed_memory
from gpt2tg.training.model.lora import base_reference, choose_weights
from gpt2tg.training.model.memory_estimate import out_of_memory, smaller_batches
from gpt2tg.training.model.new_tokenizer import saved_tokenizer, train_tokenizer, transformers_tokenizer
from gpt2tg.training.model.new_tokens import add_tokens, extend
from gpt2tg.training.output.identity import check_same_run, identity, like_before
from gpt2tg.training.output.layout import RECORD_FILES, SAMPLES_FILE, STATE_FILE, measured_test
from gpt2tg.training.output.records import Records
from gpt2tg.training.output.restoring import Damaged
from gpt2tg.training.output.resumable import find_resumable
from gpt2tg.training.output.run_directory import RunDirectory
from gpt2tg.training.plan import kept_attention, plan, total_steps
from gpt2tg.training.preview import preview_blocks
from gpt2tg.training.processes import run_on_main_process
from gpt2tg.training.progress import Progress
from gpt2tg.training.report import log_setup, plot_title, run_record
from gpt2tg.training.samples import Samples, as_question
from gpt2tg.training.stopwatch import Stopwatch
from gpt2tg.training.trainer import LanguageTrainer


class Run:
    """A training run. The constructor reads the text and the model, and checks them; it writes only the token cache.

    Attributes:
        trainer: exists after `build_trainer`.
    """

    trainer: LanguageTrainer

    def __init__(
        self,
        options: TrainingOptions,
        model_name: str,
        device: torch.device,
        arguments: TrainingArguments,
        interruption: Interruption,
        callbacks: Sequence[TrainerCallback],
        checkpoint: Path | None,
        sources: Sources | None,
    ) -> None:
        """Read text and model.

        Args:
            checkpoint: the one to resume from.
            sources: the result of `plan_sources`, if the text was surveyed before.

        Raises:
            UserError: text, model and options do not fit together.
        """
        self.options = options
        self.output_dir = Path(options.output_dir)
        self.directory = RunDirectory(self.output_dir, options.save_total_limit)
        self._device, self._arguments, self._processes = device, arguments, arguments.world_size
        self._interruption, self._callbacks, self._checkpoint = interruption, callbacks, checkpoint
        self._sources = run_on_main_process(lambda: sources or plan_sources(options, model_name))
        if checkpoint is not None and any(side.corpus.has_prompts for side in self._sources if side is not None):
            self.options = options = like_before(options, checkpoint)
        for line in dict.fromkeys(line for side in self._sources if side is not None for line in side.corpus.notices):
            log.info(line)
        self._base = None if options.from_scratch else check_existing(options, model_name)
        self._added_tokens: dict[int, str] = {}
        self._name = "a new model" if options.from_scratch else model_name
        self._model, self._tokenizer = self._load_model()
        check_layers(options, self._model.config.n_layer)
        if options.generate_samples or options.sample_steps:
            _check_sample_prompt(len(self._tokenizer.encode(options.prompt)), self._model.config.n_positions)
        test = run_on_main_process(lambda: scan_test(options, model_name, self._sources))
        with arguments.main_process_first():  # the others find the tokens in the cache
            self._data = load_data(self._sources, self._tokenizer, options)
            self._test = None if test is None else load_test(test, self._tokenizer, self._data)
        self._shape = shape_of_model(self._model, self._tokenizer.end_id)
        self._steps = total_steps(options, len(self._data.train), self._processes)
        self._is_compiled = is_compiled(options, device, self._steps)
        self._had_ended = False  # whether nothing was left to train

    def _load_model(self) -> tuple[GPT2LMHeadModel, TextTokenizer]:
        transformers.set_seed(self.options.seed)
        if self._base is None:
            return new_model(self._new_tokenizer, self.options), self._new_tokenizer
        model, tokenizer = existing_model(self._base, self.options.dropout, self.options.unlikelihood_alpha)
        self._added_tokens = add_tokens(model, tokenizer, self.options.add_tokens)
        return model, tokenizer

    @functools.cached_property
    def _new_tokenizer(self) -> TextTokenizer:
        """The tokenizer of a run from scratch: trained on the text, or loaded from the checkpoint."""
        if self._checkpoint is not None:
            return saved_tokenizer(self._checkpoint)
        tokenizer = run_on_main_process(lambda: train_tokenizer(self._sources[0], self.options.vocab_size))
        extend(tokenizer, self.options.add_tokens)
        return tokenizer

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one. First used before any weight changes."""
        return run_on_main_process(
            lambda: identity(
                self.options, self._model, self._tokenizer, self._base is None, self._data, self._processes
            )
        )

    def log_setup(self) -> None:
        """Log what is trained on what, with advice on the data, and print the blocks that --show_blocks asks for."""
        for line in advice(self._sources, self._data, self.options):
            log.info(f"advice: {line}")
        log_setup(self.options, self._model, self._name, self._data, self._processes)
        if is_main_process():
            template = self._sources[0].corpus.chat_template
            for line in preview_blocks(self._data, self._tokenizer, self.options, template):
                print_result(line)

    def print_plan(self) -> None:
        """Print the plan of the run on stdout.

        Raises:
            RunError: the steps that are timed run out of memory.
        """
        if is_main_process():
            config = self._model.config
            with self._explain_memory():
                for line in plan(self.options, config, self._shape, self._data, self._device, self._processes):
                    print_result(line)

    def load_final_state(self) -> TrainerState | None:
        """Return the state in the checkpoint if nothing is left to train; None if there is more, or no checkpoint.

        Raises:
            UserError: the checkpoint belongs to another run.
        """
        if self._checkpoint is None:
            return None
        check_same_run(self._checkpoint, self._identity, self.options.resume_anyway)
        state: TrainerState = TrainerState.load_from_json(str(self._checkpoint / STATE_FILE))
        if self._is_over(state, self._steps):
            return state
        left = self._steps - state.global_step
        log.info(f"resuming at step {state.global_step:,} of {self._steps:,}, {left:,} to go")
        return None

    def _is_over(self, state: TrainerState, last_step: int) -> bool:
        is_impatient = is_out_of_patience(state.log_history, self.options.early_stopping_patience)
        return state.global_step >= last_step or is_impatient

    def is_published(self, state: TrainerState) -> bool:
        """Whether the output directory holds the model of a finished run, and nothing is left to merge or upload."""
        awaits_merge = self._merges_adapter and (self.output_dir / ADAPTER_CONFIG).is_file()
        awaits_test = self._test is not None and measured_test(self.output_dir) != self._test.fingerprint
        if self.options.push_to_hub or awaits_merge or awaits_test:
            return False
        return self.directory.holds(held_step(state, self.options.keep))

    @property
    def _merges_adapter(self) -> bool:
        return self.options.lora and not self.options.no_merge

    def write_record(self) -> None:
        """Write run.json, the first file of a run."""
        if is_main_process():
            model_name = None if self._base is None else self._name
            commit = None if self._base is None else hub_commit(self._base.directory)
            files = [*RECORD_FILES, *([SAMPLES_FILE] if self.options.sample_steps else [])]
            corpus = self._sources[0].corpus
            record = run_record(self.options, model_name, commit, corpus, self._data, self._arguments)
            self.directory.update(**record, files=files)

    def build_trainer(self, arguments: TrainingArguments) -> None:
        """Build the trainer with its callbacks. Writes nothing, but creates a missing output directory.

        Raises:
            RunError: --push_to_hub is set, and the hub refuses; or the device has no memory for the model.
        """
        with self._explain_memory():
            self._build_trainer(arguments)

    def _build_trainer(self, arguments: TrainingArguments) -> None:
        options, data = self.options, self._data
        run_identity = self._identity  # before any weight changes
        tokens = options.batch_size * options.gradient_accumulation_steps * options.block_size
        stopwatch = Stopwatch(tokens * arguments.world_size)
        self.trainer = LanguageTrainer(
            directory=self.directory,
            identity=run_identity,
            keep=options.keep,
            eval_steps=options.eval_steps,
            uses_muon=options.optim == "muon",
            stopwatch=stopwatch,
            interruption=self._interruption,
            pad_id=self._tokenizer.end_id,
            model=self._trainable_model(),
            args=arguments,
            data_collator=collate(options.block_size, self._tokenizer.end_id),
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=self._tokenizer_files(),
            callbacks=[Progress(stopwatch), *self._callbacks],
        )
        reset_peak_memory(arguments.device)  # the model is there now
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.trainer.add_callback(self._records())
        if options.sample_steps:
            asked = as_question(options, self._sources[0].corpus.chat_template)
            self.trainer.add_callback(Samples(asked, self._tokenizer, self.output_dir, stopwatch))
        self.trainer.add_callback(FlowControl(data.validation is not None, options, self.trainer.signals))

    def _trainable_model(self) -> torch.nn.Module:
        base = "" if self._base is None else base_reference(self._name, self._base.directory)
        model = choose_weights(self._model, self.options, base, self._device, tuple(self._added_tokens))
        if self._is_compiled:
            model.transformer.compile()
        return model

    def _tokenizer_files(self) -> CopiedFiles | transformers.PreTrainedTokenizerFast:
        """Return the object that saves the tokenizer, and other files of the base model, into each checkpoint."""
        template = self._sources[0].corpus.chat_template
        source = None if template is None else template.source
        if self._base is None:
            return transformers_tokenizer(self._tokenizer, self._model.config.n_positions, source)
        files = files_to_copy(self._base.directory, self._base.shape, self._tokenizer, source)
        return files.with_tokens(self._added_tokens)

    def _records(self) -> Records:
        return Records(self.directory, plot_title(self._name, self.options))

    def train(self, final_state: TrainerState | None) -> None:
        """Train to the end. Retries with smaller batches if memory runs out, uncompiled if torch.compile fails, and
        with an earlier checkpoint if one does not fit the model.

        Args:
            final_state: the state of a run that has nothing left to train.

        Raises:
            Damaged: the checkpoint that --resume names does not fit the model.
            RunError: memory ran out, and --auto_batch_size is not set or has reached 1; or torch.compile failed, and
                --compile is on or there are several processes.
            Interrupted: a signal ended the run.
        """
        batches, damaged = self.options, set[Path]()
        while final_state is None:
            try:
                self._train_once()
                return
            except Damaged as error:
                if self._checkpoint is None or self.options.resume != NEWEST:
                    raise
                log.warning(f"{error}; it is skipped")
                damaged.add(self._checkpoint)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    batches = self._smaller(batches)
                elif self._is_compiled and is_compile_error(error):
                    self._stop_compiling(error)
                else:
                    raise
            if self.trainer.has_saved or damaged:
                self._checkpoint = find_resumable(self.output_dir, NEWEST, damaged)
                final_state = self.load_final_state()
            self._rebuild_trainer(batches)
        self.trainer.state = final_state
        self._had_ended = True

    def _train_once(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal ended the run; a checkpoint of its last step is saved.
        """
        self._interruption.training = True
        if self._arguments.device.type == "cpu":
            keep_freed_memory()
        try:
            self.trainer.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        finally:
            self._interruption.training = False
        state = self.trainer.state
        if self.trainer.is_interrupted() and not self._is_over(state, state.max_steps):
            saved = self.output_dir / f"checkpoint-{state.global_step}"
            raise Interrupted(
                f"step {state.global_step:,} of {state.max_steps:,} is saved in {saved}",
                self._interruption.signal or signal.SIGTERM,  # another process may have received it
                is_saved=True,
            )

    def _smaller(self, batches: TrainingOptions) -> TrainingOptions:
        """Return options with smaller batches, after memory ran out with the given ones.

        Raises:
            RunError: --auto_batch_size is not set, or the batch size is 1.
        """
        smaller = smaller_batches(batches) if self.options.auto_batch_size else None
        if smaller is None:
            raise self._out_of_memory(batches)
        log.warning(
            f"out of memory: continuing with --batch_size {smaller.batch_size} "
            f"--gradient_accumulation_steps {smaller.gradient_accumulation_steps}, which has as many blocks a step"
        )
        return smaller

    @contextlib.contextmanager
    def _explain_memory(self) -> Iterator[None]:
        """Turn running out of memory into a RunError that names what to change."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(self.options) from None

    def _out_of_memory(self, options: TrainingOptions) -> RunError:
        attention = kept_attention(self._model.config, options, self._device)
        taken = bytes_of_other_processes(self._device)
        return RunError(out_of_memory(self._shape, options, device_bytes(self._device), attention, taken))

    def _stop_compiling(self, error: RuntimeError) -> None:
        """Go on without torch.compile, after it failed.

        Raises:
            RunError: --compile is on; or there are several processes, which would wait for each other if it failed in
                some of them.
        """
        if self.options.compile == "on" or self._processes > 1:
            raise RunError(f"torch.compile failed: {cause_of(error)}: use --compile off") from None
        log.warning(f"torch.compile failed: {cause_of(error)}; continuing without it")
        self._is_compiled = False

    def _rebuild_trainer(self, batches: TrainingOptions) -> None:
        del self.trainer, self._model
        forget_compiled()
        release_memory()
        self._model = self._load_model()[0]
        self.build_trainer(training_arguments(batches, self._device))

    def publish(self) -> None:
        """Put the model into the output directory, merged if it is an adapter, and upload it if that was asked for.

        The test text, if there is one, is measured before.
        """
        step = held_step(self.trainer.state, self.options.keep)
        test = None if self._test is None else measure_test(self.trainer, self._test, self.output_dir, step)
        if not is_main_process():
            return
        if test is not None:
            self.directory.update(test=test)
        self.directory.publish(step)
        if self._merges_adapter:
            self.directory.merge_adapter()
        if self._had_ended or test is not None:
            self._records().write(self.trainer.state)
        if self.options.push_to_hub:
            self.trainer.push_to_hub()


def _check_sample_prompt(tokens: int, positions: int) -> None:
    """Refuse a prompt that leaves no room for new tokens: otherwise samples would fail after hours of training."""
    longest = min(DEFAULT_MAX_LENGTH, positions)
    if tokens >= longest:
        raise UserError(f"has {tokens} tokens, which leaves no room in samples of {longest}: make it shorter", "prompt")
