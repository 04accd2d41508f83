"""Two processes on the CPU, as torchrun starts them, against one process with the same batch."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME
from conftest import FABLES
from torch.distributed.fsdp import StateDictType
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import finetune_gpt2
import generate_from_finetuned
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import TrainingOptions
from gpt2tg.training.checks import check_processes
from gpt2tg.training.finetune import finetune
from gpt2tg.training.output.layout import FSDP_OPTIMIZER, FSDP_WEIGHTS

ROOT = Path(__file__).parents[2]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--main_process_port", "0")
FSDP = ("--config_file", str(ROOT / "configs" / "fsdp.yaml"))

# Several runs per launch, because importing takes longer than training. On a CPU, accelerate does not shard a model,
# though torch can: the patch below enables that after accelerate has found no GPU.
LAUNCHED = """
import json, os, signal, sys, finetune_gpt2, generate_from_finetuned
from accelerate.state import AcceleratorState, DistributedType, PartialState
from gpt2tg.training.trainer import LanguageTrainer

found = AcceleratorState.__init__

def shard_on_a_cpu(self, *arguments, fsdp_plugin=None, **settings):
    found(self, *arguments, fsdp_plugin=fsdp_plugin, **settings)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

AcceleratorState.__init__ = shard_on_a_cpu
learn = LanguageTrainer.training_step

def signalled(self, *arguments):
    assert getattr(arguments[0], "gradient_as_bucket_view", True), "gradients are held twice"
    if os.environ["RANK"] == "1" and self.state.max_steps == 400 and self.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return learn(self, *arguments)

LanguageTrainer.training_step = signalled
for words in json.loads(sys.argv[1]):
    script = generate_from_finetuned if "--prompts_file" in words else finetune_gpt2
    if code := script.main(words):
        sys.stderr.write(f"exit code {code}\\n")  # one write: both processes write here, and print writes in pieces
"""


def log(directory: Path) -> list[dict[str, str]]:
    with (directory / "training_log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def launch(python: Path, launcher: tuple[str, ...], place: Path, commands: list[list[str]]) -> str:
    """Run commands one after the other in the same two processes, and return what they printed on stderr."""
    program = place / "launched.py"
    program.write_text(LAUNCHED)
    result = subprocess.run(
        [python, *launcher, "--no_python", python, program, json.dumps(commands)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def runs(model_dir: Path, forked_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run one: in a single process; two: in two; resumed: in two, stopped by a signal to one of them and resumed.

    sharded is launched by accelerate, with the model sharded by FSDP, and resumed once; undisturbed is the same
    without the interruption.
    """
    place = tmp_path_factory.mktemp("processes")
    text = place / "text.txt"
    text.write_text("\n".join(f"{fable} {n}" for n in range(5) for fable in FABLES), encoding="utf-8")

    def words(name: str, *rest: str, batch: int = 1, steps: int = 4) -> list[str]:
        return [
            "--train_file", str(text), "--model_name", str(model_dir), "--output_dir", str(place / name),
            "--block_size", "16", "--batch_size", str(batch), "--gradient_accumulation_steps", "2", "--dropout", "0",
            "--max_steps", str(steps), "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-3",
            "--lr_scheduler_type", "constant", "--validation_split", "0.2", "--device", "cpu", *rest,
        ]  # fmt: skip

    assert finetune_gpt2.main(words("one", batch=2)) == 0
    resumed_commands = [words("resumed", steps=400), words("resumed", "--resume")]
    generate = [
        *("--model_path", str(model_dir), "--prompts_file", str(text), "--max_new_tokens", "4", "--num_sequences", "1"),
        *("--seed", "3", "--format", "jsonl", "--output"),
    ]
    assert generate_from_finetuned.main([*generate, str(place / "one.jsonl")]) == 0
    said = launch(
        forked_python, TORCHRUN, place, [words("two"), *resumed_commands, [*generate, str(place / "two.jsonl")]]
    )
    cut = [words("sharded", steps=2), words("sharded", "--resume"), words("undisturbed")]
    (place / "accelerate.txt").write_text(launch(forked_python, (*ACCELERATE, *FSDP), place, cut))
    return place, said


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_losses_equal_one_process_with_the_same_batch(runs: tuple[Path, str], name: str) -> None:
    """Runs that stopped after half of the steps evaluated there too."""
    both = (log(runs[0] / directory) for directory in ("one", name))
    one, two = ([row for row in rows if row["loss"] or row["step"] != "2"] for rows in both)
    assert len(one) == len(two) == 6
    for ours, theirs in zip(one, two, strict=True):
        for column in ("loss", "validation_loss", "tokens"):
            assert float(ours[column] or 0) == pytest.approx(float(theirs[column] or 0), abs=1e-4)


def test_repeated_validation_blocks_count_once(runs: tuple[Path, str]) -> None:
    """The number of blocks is odd: accelerate gives the second process one that was evaluated before."""
    blocks = json.loads((runs[0] / "two" / "run.json").read_text())["data"]["validation_blocks"]
    assert blocks % 2 == 1


def test_only_the_main_process_prints(runs: tuple[Path, str]) -> None:
    said = runs[1].splitlines()
    expected = {"model: ": 3, "step 1/4 ": 1, "step 1/400 ": 1, "resuming at step 2": 1, "reached step 4": 2}
    for beginning, times in expected.items():
        assert sum(line.startswith(beginning) for line in said) == times, said
    assert "each step: 2 processes x batch 1 x accumulation 2 = 4 blocks, 64 tokens" in said


def test_torchrun_generates_the_records_of_one_process(runs: tuple[Path, str]) -> None:
    one, two = ((runs[0] / name).read_bytes() for name in ("one.jsonl", "two.jsonl"))
    assert one == two
    assert one.count(b"\n") == 30


@pytest.mark.parametrize(("straight", "resumed"), [("two", "resumed"), ("undisturbed", "sharded")])
def test_resumed_processes_reach_the_same_weights(runs: tuple[Path, str], straight: str, resumed: str) -> None:
    place, _ = runs
    ends = [place / name / "checkpoint-4" / "model.safetensors" for name in (straight, resumed)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    losses = [[row["loss"] for row in log(place / name) if row["loss"]] for name in (straight, resumed)]
    assert losses[0] == losses[1]
    assert (place / resumed / "checkpoint-4" / "rng_state_1.pth").is_file()


def test_signal_to_one_process_stops_both_after_one_step(runs: tuple[Path, str]) -> None:
    said = runs[1].splitlines()
    assert sum(line.startswith("step 2 of 400 is saved in ") for line in said) == 1, said
    assert said.count("exit code 143") == 2


def test_sharded_model_is_saved_unsharded(runs: tuple[Path, str]) -> None:
    place, _ = runs
    ids = torch.tensor([[5, 80, 7, 33, 12]])
    with torch.no_grad():
        expected = GPT2LMHeadModel.from_pretrained(place / "one", local_files_only=True).eval()(ids).logits[0, -1]
    for directory in (place / "sharded", place / "sharded" / "checkpoint-4"):
        found = new_context(load(str(directory)).model, 64).start(ids.tolist())[0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    one, cut = ((place / name / "model.safetensors").stat().st_size for name in ("one", "sharded"))
    assert cut == pytest.approx(one, abs=100)
    assert (place / "sharded" / "checkpoint-4" / FSDP_OPTIMIZER).is_file()  # else it was not cut


def test_resume_with_other_process_count_is_refused(runs: tuple[Path, str], model_dir: Path) -> None:
    options = json.loads((runs[0] / "two" / "run.json").read_text())["options"]
    given = TrainingOptions(**{**options, "resume": "newest", "max_steps": 6})
    with pytest.raises(UserError, match="1 processes now, 2 then"):
        finetune(given, str(model_dir), "cpu")


def test_accelerate_reads_the_fsdp_config() -> None:
    config = load_config_from_file(str(ROOT / "configs" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    settings = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
    settings["transformer_cls_names_to_wrap"] = [settings.pop("transformer_layer_cls_to_wrap")]
    plugin = FullyShardedDataParallelPlugin(fsdp_version=settings.pop("version"), **settings)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT  # a checkpoint that anyone can read
    assert GPT2Block.__name__ in plugin.transformer_cls_names_to_wrap
    assert f"{FSDP_MODEL_NAME}.bin" == FSDP_WEIGHTS
    assert f"{OPTIMIZER_NAME}.bin" == FSDP_OPTIMIZER


def test_flags_for_a_single_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="auto_batch_size"):
        check_processes(TrainingOptions(train_file="a.txt", auto_batch_size=True))
    check_processes(TrainingOptions(train_file="a.txt", sample_steps=1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="sample_steps"):
        check_processes(TrainingOptions(train_file="a.txt", sample_steps=1))
