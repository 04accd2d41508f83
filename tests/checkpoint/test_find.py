"""A model's name finds its directory, or is refused with what was found instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY, find_directory
from gpt2tg.errors import UserError


def make_models(parent: Path, *names: str) -> None:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "config.json").write_text("{}")
        (parent / name / "model.safetensors").touch()


def test_empty_name_is_refused_and_not_the_current_directory() -> None:
    with pytest.raises(UserError, match=r"^model_name is empty: give the name or the directory of a model$"):
        find_directory("")


def test_model_directory_is_found(model_dir: Path) -> None:
    assert find_directory(str(model_dir)) == model_dir


def test_relative_directory_is_found(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_dir.parent)
    assert find_directory(f"./{model_dir.name}").resolve() == model_dir.resolve()


def test_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path, "tuned")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_directory("~/tuned") == tmp_path / "tuned"


def test_local_directory_precedes_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path, "gpt2")
    monkeypatch.chdir(tmp_path)
    assert find_directory("gpt2").resolve() == (tmp_path / "gpt2").resolve()


def test_checkpoint_with_the_highest_number_is_found(tmp_path: Path) -> None:
    make_models(tmp_path, "checkpoint-10", "checkpoint-9", "checkpoint-8")
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("files", [[], ["config.json"]])
def test_incomplete_checkpoint_is_skipped(tmp_path: Path, files: list[str]) -> None:
    """A checkpoint that is being written, or whose writing was killed, has its config first."""
    make_models(tmp_path, "checkpoint-9")
    (tmp_path / "checkpoint-10").mkdir()
    for name in files:
        (tmp_path / "checkpoint-10" / name).write_text("{}")
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-9"


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-11-backup", "old-checkpoint-12", "checkpoint-"])
def test_only_numbered_folders_are_checkpoints(tmp_path: Path, name: str) -> None:
    make_models(tmp_path, "checkpoint-3", name)
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-3"


def test_final_model_precedes_its_checkpoints(tmp_path: Path) -> None:
    make_models(tmp_path, "run", "run/checkpoint-10")
    assert find_directory(str(tmp_path / "run")) == tmp_path / "run"


def test_named_checkpoint_is_found(tmp_path: Path) -> None:
    make_models(tmp_path, "checkpoint-9", "checkpoint-10")
    assert find_directory(str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"


def test_bundled_model_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_directory("gpt2-tiny") == BUNDLED_DIRECTORY


def test_missing_checkpoint_is_not_taken_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path, "run/checkpoint-9", "run/checkpoint-10")
    with pytest.raises(UserError, match="run holds checkpoint-9, checkpoint-10"):
        find_directory("run/checkpoint-99")


@pytest.mark.parametrize("option", ["model_name", "model_path"])
def test_file_in_place_of_a_directory_is_refused(tmp_path: Path, option: str) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"weights\.bin is a file") as caught:
        find_directory(str(tmp_path / "weights.bin"), option)
    assert caught.value.option == option


@pytest.mark.parametrize("option", ["model_name", "model_path"])
@pytest.mark.parametrize("name", ["./x", "a/b/c", "/no/such/model", "~/no such model", "gone/"])
def test_missing_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist") as caught:
        find_directory(name, option)
    assert name in caught.value.message
    assert caught.value.option == option


@pytest.mark.parametrize(
    "name",
    ["my--model", "my..model", "model.git", "model-", "модель", "m" * 97],
    ids=["dashes", "dots", "git", "last dash", "no ascii", "long"],
)
def test_name_that_the_hub_does_not_allow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_directory(name, "model_path")
    assert name in caught.value.message
    assert caught.value.option == "model_path"


@pytest.mark.parametrize("name", ["m" * 300, "~nobody-of-that-name/model"], ids=["long", "no such user"])
def test_name_that_the_system_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find_directory(name, "model_path")
    assert name in caught.value.message


def test_empty_directory_is_reported_as_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found nothing") as caught:
        find_directory(str(tmp_path), "model_path")
    assert caught.value.option == "model_path"
    assert str(tmp_path) in caught.value.message


def test_unrelated_files_are_listed(tmp_path: Path) -> None:
    for name in ("song.mp3", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"config\.json is missing, found notes\.txt, song\.mp3$") as caught:
        find_directory(str(tmp_path), "model_path")
    assert caught.value.option == "model_path"


def test_long_listing_of_unrelated_files_is_cut(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"photo{number:02}.jpg").touch()
    with pytest.raises(UserError, match=r"photo00\.jpg, .*\.\.\.$") as caught:
        find_directory(str(tmp_path))
    assert "photo99" not in caught.value.message
