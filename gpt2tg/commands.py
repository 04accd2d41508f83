"""What the scripts do once their flags are parsed. The heavy wings are imported only when they are needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.cli import notice, pick
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import check_file, check_output
from gpt2tg.io.streams import write_out
from gpt2tg.options import (
    FROM_SCRATCH_FLAGS,
    MOST_TUNING_PROMPTS,
    NOT_FOR_TUNING,
    SEARCHED_SETTINGS,
    SESSION_NEW_TOKENS,
    SESSION_SEQUENCES,
    STRATEGIES,
    TUNING_BATCH_SIZE,
    TUNING_NEW_TOKENS,
    CheckpointOptions,
    CompareOptions,
    DecodingOptions,
    DeviceOptions,
    EvaluationOptions,
    InspectionOptions,
    ModelNameOptions,
    PrecisionOptions,
    PromptOptions,
    TrainingOptions,
    TuneOptions,
    decoding_options,
    only,
    unused_options,
    why_unused,
)

if TYPE_CHECKING:
    from gpt2tg.generation.generator import Generator
    from gpt2tg.io.signals import SessionSignals
    from gpt2tg.session import Front


def train(given: dict[str, Any], **defaults: Any) -> None:
    """Fine-tune as the flags say, and write samples if they ask for some."""
    options = pick(TrainingOptions, given, **defaults)
    model_name = pick(ModelNameOptions, given).model_name
    device = pick(DeviceOptions, given).device
    if options.from_scratch and "model_name" in given:
        notice("--model_name is not used: --from_scratch starts from a new model")
    for name in () if options.from_scratch else FROM_SCRATCH_FLAGS:
        if name in given:
            notice(f"--{name} is not used: it shapes a new model, which only --from_scratch makes")
    for name, why in _without_effect(options).items():
        if name in given:
            notice(f"--{name} is not used: {why}")

    from gpt2tg.training.checks import advice_on_hub, check_training
    from gpt2tg.training.processes import is_main_process

    sources = check_training(options, model_name, device)
    if advice := advice_on_hub(options, model_name):
        notice(advice)
    if options.try_:
        from gpt2tg.training.search import search

        outcome = search(options, model_name, device)
    else:
        from gpt2tg.training.finetune import finetune

        outcome = finetune(options, model_name, device, sources=sources)
    if outcome is not None and options.generate_samples and is_main_process():
        _write_samples(options, device)


def _without_effect(options: TrainingOptions) -> dict[str, str]:
    """Flags that the others leave without effect, and why."""
    found = {}
    if not options.generate_samples and not options.sample_steps:
        why = "samples are written with --generate_samples or --sample_steps only"
        found |= dict.fromkeys(("prompt", "num_samples"), why)
    if not options.validation_file and not options.validation_split:
        found |= dict.fromkeys(("eval_steps", "keep"), "nothing is held out to measure on")
    if options.validation_file:
        found["validation_split"] = "--validation_file is what is measured on"
    if options.max_steps:
        found["epochs"] = "--max_steps decides when training ends"
    if options.try_:
        found |= dict.fromkeys(options.tried_settings()[0], "--try sets it")
    if not options.lora and not options.try_:
        adapter = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "no_merge")
        found |= dict.fromkeys(adapter, "there is an adapter with --lora only")
    if options.lr_scheduler_type == "constant":
        found["warmup_steps"] = "--lr_scheduler_type constant has no warm-up, constant_with_warmup has"
    return found


def _write_samples(options: TrainingOptions, device: str) -> None:
    from gpt2tg.batch.jobs import plan_jobs, write_all
    from gpt2tg.batch.prompts import Prompt
    from gpt2tg.generation.generator import load

    generator = load(options.output_dir, device, "output_dir")
    decoding = DecodingOptions(num_sequences=options.num_samples, seed=options.seed)
    write_all(
        generator, plan_jobs(generator, [Prompt(options.prompt)], decoding, None, notice), PromptOptions(), None, notice
    )


def generate(given: dict[str, Any], name: str | None, option: str, **defaults: Any) -> None:
    """Continue the prompts as the flags say.

    Args:
        name: the model, as written after the flag `option`.
    """
    if not name:
        raise UserError("is required: give the directory of a fine-tuned model", option)
    if pick(CheckpointOptions, given).list:
        from gpt2tg.checkpoint.runs import listing

        print(listing(name, option))
        return
    inspection = pick(InspectionOptions, given)
    if inspection.score is not None or inspection.candidates is not None:
        measure(given, inspection, name, option)
        return
    decoding = settle_decoding(given, **defaults)
    where = pick(PromptOptions, given)
    check_output(where, notice)
    load = model_loader(given, option)
    name = chosen_model(given, name)

    from gpt2tg.batch.prompts import read_prompts

    if where.prompts_file and "prompt" in given:
        notice("--prompt is not used: the prompts come from --prompts_file")
    if "text_column" in given and not where.prompts_file:
        notice("--text_column is not used: there is no --prompts_file")
    prompts = read_prompts(where, notice)
    import_torch(given, name, option)
    if own := checkpoint_settings(given, name, option):
        decoding = decoding_options(only(DecodingOptions, given), **{**only(DecodingOptions, defaults), **own})

    from gpt2tg.batch.jobs import plan_jobs, write_all, write_one
    from gpt2tg.batch.writers import earlier_run
    from gpt2tg.inspection.tokens import inspect_sample

    earlier = earlier_run(where, inspection.show_probabilities)
    generator = load(name)
    inspect = partial(inspect_sample, generator) if inspection.show_probabilities else None
    jobs = plan_jobs(generator, prompts, decoding, earlier, notice)
    if len(jobs) == 1 and jobs[0].options.draws == 1 and where.output is None and where.format == "text":
        write_one(generator, jobs[0], write_text, notice, inspect)
    else:
        write_all(generator, jobs, where, earlier, notice, inspect)


# The flags that still count where nothing is written.
WHERE_IT_GOES = {"output", "format", "overwrite"}
USED_BY_SCORE = {"score", "text_column", "show_probabilities"} | WHERE_IT_GOES
USED_BY_CANDIDATES = {
    "candidates",
    "overflow",
    "prompt",
    "prompts_file",
    "text_column",
    "output",
    "format",
    "overwrite",
}


def measure(given: dict[str, Any], inspection: InspectionOptions, name: str, option: str) -> None:
    """Show how probable given lines are, or what would come next, instead of writing texts."""
    if inspection.score is not None:
        used, why = USED_BY_SCORE, "--score measures given lines as they are"
    else:
        used, why = USED_BY_CANDIDATES, "--candidates shows the model's own probabilities of the next token"
    for options in (DecodingOptions, InspectionOptions, PromptOptions):
        for flag in only(options, given):
            if flag not in used:
                notice(f"--{flag} is not used: {why}")
    decoding = decoding_options(only(DecodingOptions, given))
    where = pick(PromptOptions, given)
    check_output(where, notice, goes_on=False)
    load = model_loader(given, option)

    from gpt2tg.batch.prompts import read_prompts, trailing_spaces
    from gpt2tg.batch.scoring import lines_to_score, write_candidates, write_scores

    name = chosen_model(given, name)
    if inspection.score is not None:
        lines = lines_to_score(inspection.score, where.text_column, notice)
        write_scores(load(name), lines, where, inspection)
    elif inspection.candidates is not None:
        prompts = read_prompts(where, notice)
        if line := trailing_spaces([prompt.text for prompt in prompts]):
            notice(line)
        write_candidates(load(name), prompts, where, inspection.candidates, decoding.overflow)


def chosen_model(given: dict[str, Any], name: str) -> str:
    """The model that `--checkpoint` picks among those of a run; without it, what was named."""
    which = pick(CheckpointOptions, given).checkpoint
    if which is None:
        return name
    from gpt2tg.checkpoint.runs import choose_checkpoint

    found = str(choose_checkpoint(name, which))
    notice(f"model: {found}")
    return found


def import_torch(given: dict[str, Any], name: str, option: str) -> None:
    """Import torch, and meanwhile make ready what the model will need."""
    from gpt2tg.engine.cpu import startup

    startup.import_torch(name, option, pick(DeviceOptions, given).device, pick(PrecisionOptions, given).precision)


def model_loader(given: dict[str, Any], option: str) -> Callable[..., Generator]:
    """What loads a model by its name, on the device and in the precision that the flags ask for.

    Args:
        option: the flag that the name comes from, for messages.

    Raises:
        UserError: no such device.
    """
    from gpt2tg.engine.cpu.startup import check_device

    check_device(pick(DeviceOptions, given).device)
    device, precision = pick(DeviceOptions, given).device, pick(PrecisionOptions, given).precision

    def load_model(name: str, option: str = option) -> Generator:
        from gpt2tg.generation.generator import load

        generator = load(name, device, option, precision)
        for note in (*generator.notes, *generator.tokenizer.notes):
            notice(note)
        if precision not in ("auto", generator.model.precision):
            notice(f"--precision {precision} is not to be had on this processor: {generator.model.precision} is used")
        return generator

    return load_model


def evaluate(given: dict[str, Any]) -> None:
    """Measure a model on a text; the figures go to stdout."""
    options = pick(EvaluationOptions, given)
    device = pick(DeviceOptions, given).device

    name = chosen_model(given, pick(ModelNameOptions, given).model_name)

    from gpt2tg.training.checks import check_evaluation

    text = check_evaluation(options, name, device)

    from gpt2tg.generation.generator import choose_device
    from gpt2tg.training.evaluate import evaluate as measure

    found = measure(name, options, choose_device(device), text)
    print(f"tokens {found.tokens}")
    print(f"loss {found.loss:.4f}")
    print(f"perplexity {found.perplexity:.2f}")
    print(f"bits per byte {found.bits_per_byte:.4f}")


def settle_decoding(given: dict[str, Any], **defaults: Any) -> DecodingOptions:
    """The decoding options for the flags given; says which of them the strategy has no use for."""
    options = decoding_options(only(DecodingOptions, given), **only(DecodingOptions, defaults))
    for name in unused_options(given, options):
        notice(f"--{name} is not used: {why_unused(name, options)}")
    return options


def write_text(text: str) -> None:
    """Write to stdout and show it at once, no character in two parts."""
    from gpt2tg.generation.visible_text import in_pieces

    for piece in in_pieces(text):
        write_out(piece)


def compare(given: dict[str, Any], name: str, option: str) -> None:
    """Prompts through the strategies: texts and figures on stdout, or in the files that are named."""
    where = pick(CompareOptions, given)
    for unused in ("decoding", "replay"):
        if unused in given:
            notice(f"--{unused} is not used: --compare goes through the strategies; --strategies chooses among them")
    for unused in only(TuneOptions, given):
        notice(f"--{unused} is not used: it does nothing without --tune")
    shared = {key: value for key, value in only(DecodingOptions, given).items() if key not in ("decoding", "replay")}
    base = decoding_options(shared)

    if "text_column" in given and not {"reference", "train_file", "prompts_file"}.intersection(given):
        notice("--text_column is not used: no file is read")

    from gpt2tg.comparison.strategies import strategies_to_compare

    strategies_to_compare(base, where.strategies, say=lambda _: None)  # refuses before anything heavy is loaded

    from gpt2tg.comparison.request import carry_out, read_request, texts_of

    from_reference = where.reference is not None and not {"prompt", "prompts_file"}.intersection(given)
    prompts = [] if from_reference else texts_of(pick(PromptOptions, given), notice)
    request = read_request(where, prompts, notice, given.get("text_column"))
    name = chosen_model(given, name)
    chosen = where.strategies or _all_strategies(given, name, option)
    generator = model_loader(given, option)(name)
    batch_size = pick(PromptOptions, given).batch_size
    columns = shutil.get_terminal_size().columns
    carry_out(
        request,
        generator=generator,
        name=name,
        base=base,
        chosen=chosen,
        write=write_out,
        say=notice,
        columns=columns,
        batch_size=batch_size,
    )


def _all_strategies(given: dict[str, Any], name: str, option: str) -> str:
    """All there are, and after them the settings that the checkpoint brings along, where it does."""
    from gpt2tg.checkpoint.tuned_settings import as_strategy

    own = checkpoint_settings({flag: value for flag, value in given.items() if flag != "decoding"}, name, option)
    return ",".join([*STRATEGIES, *([as_strategy(own)] if own else [])])


def tune(given: dict[str, Any], name: str, option: str) -> None:
    """Search the settings that write most like a human text; the outcome goes to stdout."""
    where, search = pick(CompareOptions, given), pick(TuneOptions, given)
    if where.reference is None:
        raise UserError("is required: give human text that the model has not learned from", "reference")
    for unused in (*NOT_FOR_TUNING, "compare", "strategies", "train_file", "output", "prompt", "prompts_file"):
        if unused in given:
            notice(f"--{unused} is not used: --tune searches settings for --reference, one text to each prompt")
    for searched in SEARCHED_SETTINGS:
        if searched in given:
            notice(f"--{searched} is not used: --tune searches it")
    left = {k: v for k, v in only(DecodingOptions, given).items() if k not in (*SEARCHED_SETTINGS, *NOT_FOR_TUNING)}
    base = decoding_options(left, **({} if "max_length" in left else {"max_new_tokens": TUNING_NEW_TOKENS}))

    from gpt2tg.checkpoint.find import find_checkpoint
    from gpt2tg.checkpoint.tuned_settings import in_words, kept, write_defaults
    from gpt2tg.comparison import report, table
    from gpt2tg.generation.generator import new_seed
    from gpt2tg.reading import check_text_column, read_examples
    from gpt2tg.tuning.tune import summary
    from gpt2tg.tuning.tune import tune as searching

    page = table.file_to_write(where.report, report.FORMATS, "report", where.overwrite, notice)
    human, column = Path(where.reference), given.get("text_column")
    check_text_column(column, human)
    examples = read_examples(human, "reference", where.examples, column, notice)
    name = chosen_model(given, name)
    if search.apply:
        _require_own_directory(name, option)
    generator = model_loader(given, option)(name)
    if base.seed is None:
        base = replace(base, seed=new_seed())
    notice(f"seed {base.seed}")
    notice(f"measuring the reference; then settings are tried and the best checked, in {search.budget:g} s")
    batch_size = pick(PromptOptions, given, batch_size=TUNING_BATCH_SIZE).batch_size
    prompts = where.num_prompts or MOST_TUNING_PROMPTS
    found = searching(generator, examples, base, prompts, search.budget, batch_size, notice)
    write_out(summary(found.end))
    settings = in_words(kept(found.end.tuned.options))
    if page:
        report.write_report(report.tuning_page(generator, found, name), page)
    if search.apply and found.end.is_clear:
        file = write_defaults(find_checkpoint(name, option), found.end.tuned.options)
        notice(f"{file} now has {settings}: used where no flag says otherwise")
        return
    if search.apply:
        notice("--apply leaves the checkpoint as it is")
    if settings:
        offer = "; --apply makes them the checkpoint's own" if found.end.is_clear else ""
        notice(f"to write with the settings found: {settings}{offer}")


def _require_own_directory(name: str, option: str) -> None:
    from gpt2tg.checkpoint.find import find_checkpoint, is_directory
    from gpt2tg.checkpoint.tuned_settings import FILE

    if not is_directory(name):
        raise UserError(f"writes into the model's directory, and --{option} {name} is none: give one", "apply")
    check_file(find_checkpoint(name, option) / FILE, "apply", notice, may_replace=True)


def checkpoint_settings(given: dict[str, Any], name: str, option: str) -> dict[str, Any]:
    """Settings that `--tune --apply` left in a directory, and said; none where a flag asks for another strategy."""
    from gpt2tg.checkpoint.find import is_directory

    if not is_directory(name):
        return {}

    from gpt2tg.checkpoint.tuned_settings import brought_along, in_words

    found = brought_along(name, option, given)
    if words := in_words(found):
        notice(f"settings of the checkpoint, found by --tune: {words}")
    return found


# What has no place in a session, which reads its prompts and writes its texts one by one.
NOT_IN_A_SESSION = ("prompts_file", "output", "format", "show_probabilities", "candidates", "score")


def interactive(given: dict[str, Any], name: str | None, option: str) -> None:
    """A session at the terminal, or prompts read from stdin, one a line, where it is none.

    A prompt that was given is the first.
    """
    if not name:
        raise UserError("is required: give the directory of a fine-tuned model", option)
    for flag in NOT_IN_A_SESSION:
        if flag in given:
            raise UserError(
                f"and --{flag} contradict each other: a session reads and writes line by line", "interactive"
            )
    for flag in given.keys() & {"overwrite", "batch_size", "text_column"}:
        notice(f"--{flag} is not used: a session writes text by text")
    from gpt2tg.io.signals import SessionSignals

    with SessionSignals() as signals:
        _sit(given, name, option, signals)


def _sit(given: dict[str, Any], name: str, option: str, signals: SessionSignals) -> None:
    decoding = settle_decoding(given, num_sequences=SESSION_SEQUENCES)
    load = model_loader(given, option)
    name = chosen_model(given, name)
    import_torch(given, name, option)
    own = checkpoint_settings(given, name, option)
    if own:
        decoding = decoding_options(only(DecodingOptions, given), num_sequences=SESSION_SEQUENCES, **own)

    from gpt2tg.session import Session

    generator = load(name)
    if "max_length" not in given and "max_new_tokens" not in given:
        length = min(SESSION_NEW_TOKENS, generator.model.shape.n_positions // 2)
        decoding = replace(decoding, max_new_tokens=length)
    front = _front(signals)
    session = Session(generator, decoding, name, front, partial(load, option="model"))
    session.chosen.update(only(DecodingOptions, given))
    session.brought = set(own)
    if front.at_terminal:
        session.welcome()
    session.run(given.get("prompt"))
    if session.refused and not front.at_terminal:
        raise UserError(f"{session.refused} of the lines could not be answered")


def _front(signals: SessionSignals) -> Front:
    """The line editor where there is a terminal for it, plain streams elsewhere."""
    from gpt2tg.session.front import is_able_terminal, plain_front

    if is_able_terminal():
        try:
            from gpt2tg.session.terminal import terminal_front

            return terminal_front(write_text, notice, signals)
        except ModuleNotFoundError as error:
            notice(f"the package {error.name} is not installed: the session goes without history and completion")
    signals.on_ctrl_c = "raise"  # there is nothing to set up
    return plain_front(write_text, notice)
