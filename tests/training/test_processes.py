"""Two processes on the CPU, as torchrun starts them, against one process with the same batch."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME
from conftest import FABLES
from torch.distributed.fsdp import StateDictType
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import finetune_gpt2
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import finetune as module
from gpt2tg.training.directory import FSDP_OPTIMIZER, FSDP_WEIGHTS
from gpt2tg.training.finetune import finetune

ROOT = Path(__file__).parents[2]

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")

# Several runs in one start of torchrun: importing takes longer than training.
LAUNCHED = """
import json, sys, torch, finetune_gpt2
torch.set_num_threads(1)
for words in json.loads(sys.argv[1]):
    if code := finetune_gpt2.main(words):
        sys.exit(code)
"""


def log(directory: Path) -> list[dict[str, str]]:
    with (directory / "training_log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """one: a single process; two: two of them; gone_on: two again, ended after half of the steps and resumed."""
    place = tmp_path_factory.mktemp("processes")
    text = place / "text.txt"
    text.write_text("\n".join(FABLES * 4), encoding="utf-8")

    def words(name: str, *rest: str, batch: int = 1, steps: int = 4) -> list[str]:
        return [
            "--train_file", str(text), "--model_name", str(model_dir), "--output_dir", str(place / name),
            "--block_size", "16", "--batch_size", str(batch), "--gradient_accumulation_steps", "2", "--dropout", "0",
            "--max_steps", str(steps), "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-3",
            "--lr_scheduler_type", "constant", "--validation_split", "0.2", "--device", "cpu", *rest,
        ]  # fmt: skip

    assert finetune_gpt2.main(words("one", batch=2)) == 0
    program = place / "launched.py"
    program.write_text(LAUNCHED)
    commands = [words("two"), words("gone_on", steps=2), words("gone_on", "--resume")]
    result = subprocess.run(
        [*TORCHRUN, "--nproc_per_node", "2", str(program), json.dumps(commands)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return place, result.stderr


def test_losses_are_those_of_one_process_with_the_same_batch(runs: tuple[Path, str]) -> None:
    one, two = (log(runs[0] / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for ours, theirs in zip(one, two, strict=True):
        for column in ("loss", "validation_loss", "tokens"):
            assert float(ours[column] or 0) == pytest.approx(float(theirs[column] or 0), abs=1e-4)


def test_the_rest_of_the_held_out_text_is_counted_once(runs: tuple[Path, str]) -> None:
    """An odd number of blocks: accelerate gives the second process one that was measured before."""
    blocks = json.loads((runs[0] / "two" / "run.json").read_text())["data"]["validation_blocks"]
    assert blocks % 2 == 1


def test_one_process_speaks(runs: tuple[Path, str]) -> None:
    said = runs[1].splitlines()
    for beginning, times in {"model: ": 3, "step 1/4": 1, "resuming at step 2": 1, "reached step 4": 2}.items():
        assert sum(line.startswith(beginning) for line in said) == times, said
    assert "each step: 2 processes x batch 1 x accumulation 2 = 4 blocks, 64 tokens" in said


def test_resumed_processes_reach_the_same_weights(runs: tuple[Path, str]) -> None:
    place, _ = runs
    ends = [place / name / "checkpoint-4" / "model.safetensors" for name in ("two", "gone_on")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    losses = [[row["loss"] for row in log(place / name) if row["loss"]] for name in ("two", "gone_on")]
    assert losses[0] == losses[1]
    assert (place / "gone_on" / "checkpoint-4" / "rng_state_1.pth").is_file()


def test_another_number_of_processes_is_refused(runs: tuple[Path, str], model_dir: Path) -> None:
    options = json.loads((runs[0] / "two" / "run.json").read_text())["options"]
    given = TrainingOptions(**{**options, "resume": "newest", "max_steps": 6})
    with pytest.raises(UserError, match="1 processes now, 2 then"):
        finetune(given, str(model_dir), "cpu")


def test_the_config_for_fsdp_is_one_that_accelerate_reads() -> None:
    config = load_config_from_file(str(ROOT / "configs" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    settings = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
    settings["transformer_cls_names_to_wrap"] = [settings.pop("transformer_layer_cls_to_wrap")]
    assert settings.pop("sync_module_states") is True  # which only a machine with a GPU accepts
    plugin = FullyShardedDataParallelPlugin(fsdp_version=settings.pop("version"), **settings)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT  # a checkpoint that anyone can read
    assert GPT2Block.__name__ in plugin.transformer_cls_names_to_wrap
    assert f"{FSDP_MODEL_NAME}.bin" == FSDP_WEIGHTS
    assert f"{OPTIMIZER_NAME}.bin" == FSDP_OPTIMIZER


def test_what_one_process_alone_can_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="auto_batch_size"):
        module._check_processes(TrainingOptions(train_file="a.txt", auto_batch_size=True))
    module._check_processes(TrainingOptions(train_file="a.txt", sample_steps=1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="sample_steps"):
        module._check_processes(TrainingOptions(train_file="a.txt", sample_steps=1))
