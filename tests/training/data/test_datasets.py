"""Datasets as training text: local folders, and a stand-in for the hub."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from hub_stand_in import GATED, NAME, Hub, serving
from huggingface_hub import constants

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data import dataset_scan, hub_datasets
from gpt2tg.training.data.sources import Sources, TextSource, plan_sources
from gpt2tg.training.data.training_data import TrainingData, load_data

OLD, NEW = "a" * 40, "b" * 40


def parquet(*texts: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "number": range(len(texts))}), file)
    return file.getvalue()


def fables(word: str, count: int = 30) -> list[str]:
    return [f"{word} fable {number}" for number in range(count)]


def plan(name: str | Path, **settings: Any) -> Sources:
    return plan_sources(TrainingOptions(dataset_name=str(name), **settings), "a model")


def texts(source: TextSource | None) -> list[str]:
    assert source is not None
    return [piece.text for piece in source]


# ---- local folders ----


def test_splits_of_a_local_folder_are_used(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,n\nNA,1\n1984,2\nnull,3\n")
    (tmp_path / "validation.csv").write_text("text,n\nheld,1\n")
    (tmp_path / "test.csv").write_text("text,n\ntested,1\n")
    train, validation = plan(tmp_path)
    assert texts(train) == ["NA", "1984", "null"]
    assert texts(validation) == ["held"]
    assert plan(tmp_path, validation_split=0)[1] is None
    train, validation = plan(tmp_path, dataset_split="validation")
    assert (texts(train), validation) == (["held"], None)


def test_configurations_are_those_of_the_card(tmp_path: Path) -> None:
    (tmp_path / "owls.jsonl").write_text('{"text": "an owl"}\n')
    (tmp_path / "foxes.jsonl").write_text('{"text": "a fox"}\n')
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: owls\n  data_files: owls.jsonl\n"
        "- config_name: foxes\n  data_files: foxes.jsonl\n---\n"
    )
    assert texts(plan(f"{tmp_path}:foxes")[0]) == ["a fox"]
    with pytest.raises(UserError, match=r"has the configurations owls, foxes: choose one with .*:owls"):
        plan(tmp_path)
    with pytest.raises(UserError, match="has no configuration fox: did you mean foxes"):
        plan(f"{tmp_path}:fox")


def test_a_dataset_saved_to_disk_is_read(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": fables("saved")}).train_test_split(0.1, shuffle=False)
    made.save_to_disk(str(tmp_path / "saved"))
    assert texts(plan(tmp_path / "saved", validation_split=0)[0]) == fables("saved")[:27]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"train.txt": "an owl"}, {"dataset_split": "trian"}, "trian is no split of .*: did you mean train?"),
        ({"train.txt": "an owl"}, {"dataset_split": "train[:9]"}, r"train\[:9\] is a slice: give the name of a split"),
        ({"train.txt": "an owl"}, {"dataset_revision": "v1"}, "is a local folder, which has no revisions"),
        ({"test.txt": "a", "validation.txt": "b"}, {}, "is required: .* has the splits validation, test"),
        ({}, {}, r"has no files that can be read .*: put .*\.parquet files into it"),
        (
            {"state.json": "{"},
            {},
            r"dataset_name .*state\.json is not as save_to_disk writes it: save it again",
        ),
        ({"dataset_dict.json": '{"a": 1}'}, {}, r"dict\.json is not as save_to_disk writes it"),
        (
            {"fables.py": "raise SystemExit", "train.txt": "an owl"},
            {},
            "made by a script, .* never run here: put data",
        ),
    ],
)
def test_trouble_with_a_local_folder_names_the_way_out(
    tmp_path: Path, files: dict[str, str], settings: dict[str, str], message: str
) -> None:
    folder = tmp_path / "fables"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        plan(folder, **settings)


def test_a_dataset_and_files_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset_name and --train_file contradict each other"):
        TrainingOptions(dataset_name="owls/fables", train_file="owls.txt")


# ---- the hub ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with two commits of a dataset."""
    content = Hub(
        {
            OLD: {"data/train-00000-of-00001.parquet": parquet(*fables("old"))},
            NEW: {
                "README.md": b"---\nlicense: mit\n---\n",
                "data/train-00000-of-00002.parquet": parquet(*fables("first")),
                "data/train-00001-of-00002.parquet": parquet(*fables("second")),
                "data/validation-00000-of-00001.parquet": parquet("held out"),
            },
        }
    )
    with serving(content):
        for module in (constants, datasets.config):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", content.url)
        template = content.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", content.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub_datasets, "RECORDS", tmp_path / "records")
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield content


def test_the_newest_commit_of_a_hub_dataset_is_used_and_noted(
    hub: Hub, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = plan(NAME)
    assert texts(train) == fables("first") + fables("second")
    assert texts(validation) == ["held out"]
    assert validation is not None
    assert validation.corpus.name == "owls/fables, validation"
    assert train.corpus.origin is not None
    assert train.corpus.origin.as_record() == {
        "name": NAME, "config": None, "commit": NEW, "split": "train", "validation_split": "validation",
    }  # fmt: skip
    # A second run downloads nothing, and one without a network uses the same commit.
    sent = len(hub.downloads())
    assert texts(plan(NAME)[0]) == texts(train)
    assert len(hub.downloads()) == sent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.commits["c" * 40] = {"data/train.parquet": parquet("newer")}
    assert texts(plan(NAME)[0]) == texts(train)


def test_a_revision_pins_the_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts(plan(NAME, dataset_revision=OLD, validation_split=0)[0]) == fables("old")
    asked = len(hub.requests)
    assert texts(plan(NAME, dataset_revision=OLD, validation_split=0)[0]) == fables("old")
    assert len(hub.requests) == asked


def test_streaming_keeps_only_tokens_and_gives_the_same_blocks(
    hub: Hub, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dataset_scan, "load_tokenizer_of", lambda *_: tokenizer)

    def load(**settings: Any) -> TrainingData:
        options = TrainingOptions(dataset_name=NAME, block_size=16, **settings)
        return load_data(plan_sources(options, "a model"), tokenizer, options)

    streamed = load(dataset_streaming=True)
    assert not list((tmp_path / "hub").rglob("*.parquet"))
    sent = len(hub.downloads())
    again = load(dataset_streaming=True)
    assert len(hub.downloads()) == sent
    downloaded = load()
    assert streamed.fingerprints == again.fingerprints == downloaded.fingerprints
    one, other = ([row["input_ids"].tolist() for row in data.train] for data in (streamed, downloaded))
    assert one == other
    # Without a validation split of the dataset, ours holds out the same examples.
    split = [load(dataset_streaming=streams, dataset_revision=OLD, seed=3) for streams in (True, False)]
    assert split[0].validation is not None
    assert split[0].fingerprints == split[1].fingerprints


def test_streamed_conversations_keep_their_template(
    hub: Hub, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the second run reads nothing but the cache."""
    monkeypatch.setattr(dataset_scan, "load_tokenizer_of", lambda *_: tokenizer)
    rows = [[{"role": "user", "content": f"Owl {n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(30)]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"messages": rows}), file)
    hub.commits["d" * 40] = {"data/train-00000-of-00001.parquet": file.getvalue()}
    options = TrainingOptions(dataset_name=NAME, dataset_streaming=True, chat_template="plain")
    runs = [plan_sources(options, "gpt2-tiny") for _ in range(2)]
    assert hub.downloads().count("data/train-00000-of-00001.parquet") == 2  # its end, with the schema, and the rows
    for train, _ in runs:
        assert train.corpus.chat_template is not None
        assert train.corpus.has_prompts
    first, second = (load_data(sources, tokenizer, options).fingerprints for sources in runs)
    assert first == second


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("owls/unknown", {}, "dataset_name owls/unknown is neither a folder here nor a dataset on the hub: check"),
        ("owls//", {}, "dataset_name owls// is neither a folder here nor a valid name of a hub dataset"),
        (GATED, {}, "is a gated dataset: accept its terms on the hub, then log in here with `hf auth login`"),
        (NAME, {"dataset_revision": "v9"}, "dataset_revision v9 is no branch, tag or commit of owls/fables"),
        (f"{NAME}:large", {}, "owls/fables:large: owls/fables has no configuration large: choose from default"),
        (
            NAME,
            {"dataset_split": "test"},
            "dataset_split test is no split of owls/fables: choose from train, validation",
        ),
    ],
)
def test_trouble_with_the_hub_names_the_way_out(hub: Hub, name: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        plan(name, **settings)
    assert "\n" not in str(refusal.value)


def test_a_hub_that_cannot_be_reached_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match="and the hub cannot be reached: give a local folder, or text files with --train"
    ):
        plan(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="and HF_HUB_OFFLINE is set: give a local folder"):
        plan(NAME)


def test_a_stream_that_breaks_off_is_one_line(
    hub: Hub, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_scan, "load_tokenizer_of", lambda *_: tokenizer)
    hub_datasets.find_on_hub(NAME, None, NEW)
    del hub.commits[NEW]["data/train-00001-of-00002.parquet"]
    message = (
        r"train-00001-of-00002.parquet could not be read from the hub \(.*\): try again, or leave out --dataset_str"
    )
    with pytest.raises(UserError, match=message):
        plan(NAME, dataset_streaming=True, dataset_revision=NEW, text_column="text")
