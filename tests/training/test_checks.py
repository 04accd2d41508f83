"""What is refused before torch and transformers are imported, which takes seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.commands.flags import Flags
from gpt2tg.commands.train import TrainCommand, train
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import finetune as training
from gpt2tg.training.checks import advice_on_hub, check_training_device

ROOT = Path(__file__).parents[2]

# Runs commands one after the other; of each the exit code, the last line said, and what heavy was imported by then.
PROGRAM = """
import io, json, sys
import finetune_gpt2, generate_from_finetuned, gpt2_text_generation
heavy = {"torch", "transformers", "datasets", "peft", "accelerate"}
found = []
for script, *words in json.loads(sys.argv[1]):
    sys.stderr = io.StringIO()
    code = sys.modules[script].main(words)
    found.append([code, sys.stderr.getvalue().splitlines()[-1], sorted(heavy & set(sys.modules))])
print(json.dumps(found))
"""


def prepared(place: Path) -> None:
    """Make files and directories that are each wrong in one way."""
    (place / "text.txt").write_text("The owl slept.\nThe fox sat.\n" * 9)
    (place / "empty.txt").write_text("")
    (place / "blank.txt").write_text("\n \n")
    (place / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("no-text", "no-config", "weightless", "orphan", "full", "new", "lonely"):
        (place / name).mkdir()
    for name in ("full/notes.md", "no-config/model.safetensors"):
        (place / name).write_text("x")
    shutil.copy(BUNDLED_DIRECTORY / "config.json", place / "weightless")
    (place / "orphan" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "/nowhere/model"}'
    )
    (place / "orphan" / "adapter_model.safetensors").write_text("x")
    (place / "lonely" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "gpt2-tiny"}'
    )
    os.mkfifo(place / "pipe")


def wrong_trainings(at: Path) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Return mistakes by a part of their message: flags that replace those of a valid command, and additional ones."""
    text = {"train_file": str(at / "text.txt")}
    files = {"nowhere.txt does not exist": "nowhere.txt", "no-text is a directory without a text file": "no-text"}
    files |= {"pipe is a pipe or a device": "pipe", "empty.txt holds no text": "empty.txt"}
    files |= {"blank.txt holds no text": "blank.txt", "latin.txt is not UTF-8: byte 3": "latin.txt"}
    models = {
        "--model_name ./no-model does not exist": "./no-model",
        "nobody/knows-it is neither a directory here": "nobody/knows-it",
    }
    models |= {"config.json is missing": str(at / "no-config"), "weightless holds no weights": str(at / "weightless")}
    models |= {"an adapter for /nowhere/model": str(at / "orphan"), "the adapter is incomplete": str(at / "lonely")}
    outputs = {"full is not empty": "full", "text.txt is a file": "text.txt", "out cannot be created": "text.txt/out"}
    devices = {"cuda:1 is for generation": "cuda:1", "gpu is not a device": "gpu", "mps asked for": "mps"}
    resumes = {"found no checkpoint-N": ["--resume"], "is no checkpoint of": ["--resume", str(at / "full")]}
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    found |= {what: ({"train_file": str(at / name)}, []) for what, name in files.items()}
    found |= {"/dev/null is a pipe or a device": ({"train_file": os.devnull}, [])}
    found |= {"--validation_file": (text, ["--validation_file", str(at / "nowhere.txt")])}
    found |= {what: ({"model_name": name}, []) for what, name in models.items()}
    found |= {what: ({"output_dir": str(at / name)}, []) for what, name in outputs.items()}
    found |= {what: ({"device": name}, []) for what, name in devices.items()}
    found |= {what: ({"output_dir": str(at / "new")}, words) for what, words in resumes.items()}
    found |= {"513 is over the context length of gpt2-tiny: use at most 512": (text, ["--block_size", "513"])}
    found |= {"7 is more than the 6 layers": (text, ["--freeze_layers", "7"])}
    found |= {"deletes the files of an earlier training run": ({"output_dir": str(at / "full")}, ["--overwrite"])}
    found |= {"--fp16 and --bf16 contradict": (text, ["--fp16", "--bf16"])}
    found |= {"found no search": ({"output_dir": str(at / "new")}, ["--resume", "--try", "epochs=1,2"])}
    found |= {"999 is over the context length of gpt2-tiny": (text, ["--try", "block_size=64,999"])}
    found |= {"544 is over the context length of gpt2-tiny": (text, ["--dry_run", "--block_size", "544"])}
    return found


def commands_and_messages(at: Path) -> list[tuple[list[str], str]]:
    good = {"train_file": str(at / "text.txt"), "model_name": "gpt2-tiny", "output_dir": str(at / "out")}
    found = []
    for what, (changed, more) in wrong_trainings(at).items():
        flags = [word for name, value in {**good, "device": "cpu", **changed}.items() for word in (f"--{name}", value)]
        found.append((["finetune_gpt2", *flags, *more], what))
    joined = ["gpt2_text_generation", "--model_name", "gpt2-tiny", "--task"]
    text = str(at / "text.txt")
    found += [
        ([*joined, "train", "--train_file", str(at / "gone")], "--train_file"),
        ([*joined, "evaluate", "--eval_file", str(at / "gone")], "--eval_file"),
        (
            [*joined, "evaluate", "--eval_file", text, "--stride", "512"],
            "512 is not shorter than the context length 512",
        ),
        ([*joined, "evaluate", "--eval_file", text, "--device", "mps"], "mps asked for"),
        ([*joined, "evaluate", "--eval_file", text, "--model_name", "./no"], "./no does not exist"),
        ([*joined, "evaluate", "--eval_file", text, "--checkpoint", "best"], "holds no checkpoint-N"),
        (["generate_from_finetuned", "--model_path", "./no"], "./no does not exist"),
        (["generate_from_finetuned", "--model_path", "gpt2-tiny", "--device", "mps"], "mps asked for"),
        (["generate_from_finetuned", "--model_path", "gpt2-tiny", "--prompts_file", str(at / "gone")], "gone"),
    ]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such pipe or device elsewhere")
def test_bad_input_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    prepared(tmp_path)
    cases = commands_and_messages(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([words for words, _ in cases])],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    for (words, what), (code, told, imported) in zip(cases, json.loads(result.stdout), strict=True):
        assert what in told, (words, told)
        assert code == 2, (words, told)
        assert imported == [], words
    assert sorted(tmp_path.rglob("*")) == before  # nothing was made


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "", None, 3])
def test_unknown_device_of_finetune_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=r"^device .* is not (a device|valid)"):
        check_training_device(device)


def test_only_the_main_process_writes_final_samples(
    tmp_path: Path, text_file: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the requested device. The other processes print nothing."""
    told: list[object] = []
    given = {"train_file": (str(text_file),), "model_name": str(model_dir), "output_dir": str(tmp_path / "out")}
    given |= {"generate_samples": True, "device": "cpu", "block_size": 16}
    command = TrainCommand.from_flags(Flags(given))

    def trained(*_: object, **__: object) -> object:
        told.append("trained")
        return object()

    def loaded(name: str, device: str, *_: object) -> None:
        told.append((name, device))
        raise InterruptedError

    monkeypatch.setattr(training, "finetune", trained)
    monkeypatch.setattr("gpt2tg.generation.generator.load", loaded)
    with pytest.raises(InterruptedError):
        train(command)
    assert told == ["trained", (str(tmp_path / "out"), "cpu")]
    monkeypatch.setenv("RANK", "1")
    train(command)
    assert told == ["trained", (str(tmp_path / "out"), "cpu"), "trained"]


def test_adapter_without_public_base_is_advised_against(model_dir: Path) -> None:
    options = TrainingOptions(train_file="a.txt", lora=True, push_to_hub=True)
    for name in (str(model_dir), "gpt2-tiny"):
        assert "others cannot load the adapter alone: use the merged model" in (advice_on_hub(options, name) or "")
    alone = TrainingOptions(train_file="a.txt", lora=True, push_to_hub=True, no_merge=True)
    assert "leave out --no_merge" in (advice_on_hub(alone, str(model_dir)) or "")
    assert advice_on_hub(options, "gpt2") is None
    assert advice_on_hub(TrainingOptions(train_file="a.txt", push_to_hub=True), str(model_dir)) is None
