"""Hub models: found in the cache without a network, downloaded without files we do not need, or refused clearly."""

from __future__ import annotations

import errno
import json
import re
import shutil
import socket
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import random_model, read_gpt2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint import hub
from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.checkpoint.find import base_directory, find_directory
from gpt2tg.checkpoint.hub import fetch_model, hub_commit
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def dead_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """HF_HUB_OFFLINE is not set, but no host can be reached. Return the list of the hosts that were asked for."""
    asked: list[str] = []

    def fail(host: object, *_: object, **__: object) -> None:
        asked.append(str(host))
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: fail(address))
    return asked


def put(cache: Path, name: str, files: dict[str, Path], listed: tuple[str, ...] = ()) -> Path:
    """Store a model in the cache as huggingface_hub does: blobs, links to them in a snapshot, and the branch name.

    Args:
        listed: all files of the repository, for the listing that newer versions of the library keep.
    """
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "refs", repository / "blobs", repository / "trees", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, (file, source) in enumerate(files.items()):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(source, blob)
        (snapshot / file).symlink_to(blob)
    if listed:
        listing = {"format_version": 1, "files": {file: {"size": 1, "blob_id": "0" * 40} for file in listed}}
        (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))
    return snapshot


def files_of(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir()}


@pytest.fixture
def files(model_dir: Path) -> dict[str, Path]:
    return files_of(model_dir)


@pytest.fixture
def sharded_files(model_dir: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(model_dir, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    random_model().save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    return files_of(tmp_path / "sharded")


# --- in the cache ---


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_cached_model_is_found_without_the_network(
    cache: Path, files: dict[str, Path], dead_network: list[str], name: str
) -> None:
    snapshot = put(cache, name, files)
    assert fetch_model(name).resolve() == snapshot.resolve()
    assert find_directory(name).resolve() == snapshot.resolve()
    assert dead_network == []


def test_cached_model_is_found_with_hf_hub_offline(cache: Path, files: dict[str, Path]) -> None:
    snapshot = put(cache, "gpt2", files)
    assert fetch_model("gpt2").resolve() == snapshot.resolve()


def test_cached_model_has_the_weights_of_its_source(
    cache: Path, files: dict[str, Path], reference: GPT2LMHeadModel
) -> None:
    put(cache, "gpt2", files)
    found = read_gpt2(find_directory("gpt2"))
    columns = found.matrices["h.1.attn.c_attn"].columns(torch.arange(found.shape.n_embd * 3))
    assert torch.equal(columns.t(), reference.transformer.h[1].attn.c_attn.weight)


def test_cached_sharded_model_is_used(cache: Path, sharded_files: dict[str, Path], dead_network: list[str]) -> None:
    snapshot = put(cache, "gpt2", sharded_files)
    assert fetch_model("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []


def test_cached_model_with_vocab_and_merges_is_used(
    cache: Path, files: dict[str, Path], dead_network: list[str], tmp_path: Path
) -> None:
    Tokenizer.from_file(str(files.pop("tokenizer.json"))).model.save(str(tmp_path))
    snapshot = put(cache, "gpt2", {**files, **{name: tmp_path / name for name in ("vocab.json", "merges.txt")}})
    assert fetch_model("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []
    assert load_tokenizer(snapshot, 300, None).end_id == 0


def test_cached_model_with_bert_tokenizer_is_used(
    cache: Path, files: dict[str, Path], dead_network: list[str], tmp_path: Path
) -> None:
    files = {name: path for name, path in files.items() if not name.startswith("tokenizer")}
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nowl\n")
    snapshot = put(cache, "gpt2", {**files, "vocab.txt": tmp_path / "vocab.txt"})
    assert find_directory("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []
    assert load_tokenizer(snapshot, 300, None).encode("Owl") == [2]


def test_cached_pickle_is_used(cache: Path, files: dict[str, Path], dead_network: list[str]) -> None:
    weights = files.pop("model.safetensors")
    snapshot = put(cache, "gpt2", {**files, "pytorch_model.bin": weights})
    assert fetch_model("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []


def test_cached_copy_may_lack_files_we_do_not_read(
    cache: Path, files: dict[str, Path], dead_network: list[str]
) -> None:
    """We leave out other formats. The library, which keeps the listing of all files, calls such a copy incomplete."""
    snapshot = put(cache, "gpt2", files, listed=(*files, "README.md", "pytorch_model.bin", "tf_model.h5"))
    assert fetch_model("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_incomplete_copy_is_not_used(cache: Path, files: dict[str, Path], missing: str) -> None:
    put(cache, "gpt2", {name: path for name, path in files.items() if name != missing})
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_copy_with_half_a_tokenizer_is_not_used(cache: Path, files: dict[str, Path], missing: str) -> None:
    there = {"vocab.json", "merges.txt"} - {missing}
    files.update(dict.fromkeys(there, files.pop("tokenizer.json")))
    put(cache, "gpt2", files)
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


def test_copy_without_a_shard_is_not_used(cache: Path, sharded_files: dict[str, Path]) -> None:
    del sharded_files[next(name for name in sharded_files if fnmatch(name, "model-*.safetensors"))]
    put(cache, "gpt2", sharded_files)
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


@pytest.mark.parametrize("index", ["[" * 100_000, "[]", '{"weight_map": []}', "{"])
def test_copy_with_a_broken_index_is_not_used(
    cache: Path, sharded_files: dict[str, Path], tmp_path: Path, index: str
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(index)
    put(cache, "gpt2", {**sharded_files, "model.safetensors.index.json": broken})
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


def sharded_pickle(tmp_path: Path) -> dict[str, Path]:
    """Return the weights of a model in two pickles, and their index."""
    weights = random_model().state_dict()
    names = list(weights)
    parts = {BIN_SHARDS[0]: names[:9], BIN_SHARDS[1]: names[9:]}
    for file, part in parts.items():
        torch.save({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / BIN_INDEX).write_text(json.dumps(index))
    return {name: tmp_path / name for name in (*BIN_SHARDS, BIN_INDEX)}


def test_cached_sharded_pickle_is_used(
    cache: Path, files: dict[str, Path], tmp_path: Path, dead_network: list[str], reference: GPT2LMHeadModel
) -> None:
    del files["model.safetensors"]
    snapshot = put(cache, "gpt2", {**files, **sharded_pickle(tmp_path)})
    assert fetch_model("gpt2").resolve() == snapshot.resolve()
    assert dead_network == []
    found = read_gpt2(find_directory("gpt2")).matrices["wte"].columns(torch.arange(300))
    assert torch.equal(found, reference.transformer.wte.weight)


def test_copy_without_a_pickled_shard_is_not_used(cache: Path, files: dict[str, Path], tmp_path: Path) -> None:
    del files["model.safetensors"]
    put(cache, "gpt2", {**files, **sharded_pickle(tmp_path)})
    next(cache.glob(f"*/snapshots/*/{BIN_SHARDS[1]}")).unlink()
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


def test_copy_with_only_a_variant_of_the_weights_is_not_used(cache: Path, files: dict[str, Path]) -> None:
    """Another program downloaded its half precision; the weights that we prefer are still on the hub."""
    weights = files.pop("model.safetensors")
    put(cache, "gpt2", {**files, "model.fp16.safetensors": weights})
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


def test_copy_with_a_broken_link_is_not_used(cache: Path, files: dict[str, Path]) -> None:
    snapshot = put(cache, "gpt2", files)
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(UserError, match="gpt2 is neither a directory here nor a model in the local cache"):
        fetch_model("gpt2")


def test_cached_adapter_is_found_without_the_network(
    cache: Path, files: dict[str, Path], dead_network: list[str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    names = {"adapter_config.json": tmp_path / "adapter_config.json", "adapter_model.safetensors": files["config.json"]}
    snapshot = put(cache, "someone/lora", names)
    assert fetch_model("someone/lora").resolve() == snapshot.resolve()
    assert dead_network == []


# --- not in the cache, and no network ---


def assert_advice(error: UserError, name: str) -> None:
    """Assert that the error is one line with the name of the model and both ways that work without a network."""
    assert name in error.message
    assert f"--{error.option} gpt2-tiny" in error.message
    assert "path of a directory" in error.message
    assert error.message.isprintable()


@pytest.mark.parametrize("option", ["model_name", "model_path"])
@pytest.mark.parametrize("name", ["gpt2", "someone/gpt2.fables_v2"])
def test_error_with_hf_hub_offline_names_the_ways_out(cache: Path, name: str, option: str) -> None:
    with pytest.raises(UserError) as caught:
        find_directory(name, option)
    assert_advice(caught.value, name)
    assert "HF_HUB_OFFLINE" in caught.value.message
    assert caught.value.option == option


@pytest.mark.parametrize("option", ["model_name", "model_path"])
def test_error_without_a_network_names_the_ways_out(cache: Path, dead_network: list[str], option: str) -> None:
    with pytest.raises(UserError) as caught:
        find_directory("gpt2", option)
    assert_advice(caught.value, "gpt2")
    assert caught.value.option == option


def test_missing_network_is_tried_once(cache: Path, dead_network: list[str]) -> None:
    with pytest.raises(UserError):
        fetch_model("gpt2")
    assert len(dead_network) == 1


def test_hub_that_does_not_answer_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server accepts the connection and stays silent, as a hub behind a broken proxy does."""
    assert hub.HUB_TIMEOUT <= 10
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot be reached") as caught:
            fetch_model("gpt2")
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert_advice(caught.value, "gpt2")


# --- not in the cache, but on the hub ---

Publish = Callable[..., None]

BASICS = ("config.json", "tokenizer.json")


@pytest.fixture
def publish(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a model on a stand-in for the hub: the call takes its files, or the errors of its listing and download."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def on_hub(
        *files: str,
        listing_error: Exception | None = None,
        download_error: Exception | None = None,
        asked: list[str | None] | None = None,
    ) -> None:
        def model_info(*_: Any, revision: str | None = None, **settings: Any) -> SimpleNamespace:
            if asked is not None:
                asked.append(revision)
            if listing_error:
                raise listing_error
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

        def snapshot_download(
            _: str,
            *,
            local_files_only: bool = False,
            allow_patterns: list[str] | str | None = None,
            revision: str | None = None,
            **__: Any,
        ) -> str:
            if asked is not None:
                asked.append(revision)
            if local_files_only:
                raise LocalEntryNotFoundError("nothing in the cache")
            if download_error:
                raise download_error
            patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns or ["*"]
            (tmp_path / "downloaded").mkdir()
            for file in files:
                if any(fnmatch(file, pattern) for pattern in patterns):
                    (tmp_path / "downloaded" / file).touch()
            return str(tmp_path / "downloaded")

        monkeypatch.setattr(HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return on_hub


def http_error(kind: type[HfHubHTTPError], message: str) -> HfHubHTTPError:
    return kind(message, response=SimpleNamespace(headers={}, request=None, status_code=500))


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
BIN_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
BIN_INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"model.safetensors"}, {"model.safetensors"}),
        ({"model.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        ({"model.safetensors", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"}, {"model.safetensors"}),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        ({"pytorch_model.bin", "tf_model.h5"}, {"pytorch_model.bin"}),
        ({INDEX, *SHARDS}, {INDEX, *SHARDS}),
        ({INDEX, *SHARDS, "pytorch_model.bin"}, {INDEX, *SHARDS}),
        ({"model.safetensors", INDEX, *SHARDS}, {"model.safetensors"}),
        ({BIN_INDEX, *BIN_SHARDS, "tf_model.h5"}, {BIN_INDEX, *BIN_SHARDS}),
        ({BIN_INDEX, *BIN_SHARDS, INDEX, *SHARDS}, {INDEX, *SHARDS}),
        ({"pytorch_model.bin", BIN_INDEX, *BIN_SHARDS}, {"pytorch_model.bin"}),
    ],
    ids=[
        *("alone", "and a pickle", "and others", "pickle", "pickle and others", "shards", "shards and a pickle"),
        *("both", "pickled shards", "both kinds of shards", "pickle and its shards"),
    ],
)
def test_one_format_of_the_weights_is_downloaded(publish: Publish, there: set[str], taken: set[str]) -> None:
    publish(*BASICS, *there)
    assert files_of(fetch_model("gpt2")).keys() == {*BASICS, *taken}


def test_tokenizer_and_settings_are_downloaded(publish: Publish) -> None:
    small = {"config.json", "generation_config.json", "vocab.json", "merges.txt", "tokenizer.json"}
    publish(*small, "model.safetensors")
    assert files_of(fetch_model("gpt2")).keys() == {*small, "model.safetensors"}


def test_additional_tokenizer_files_are_downloaded(publish: Publish) -> None:
    side = {"added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt"}
    publish(*BASICS, *side, "model.safetensors")
    assert files_of(fetch_model("gpt2")).keys() == {*BASICS, *side, "model.safetensors"}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapter_is_downloaded_with_its_config(publish: Publish, weights: str) -> None:
    publish("adapter_config.json", weights, "README.md", "training_args.bin")
    assert files_of(fetch_model("someone/lora")).keys() == {"adapter_config.json", weights}


def test_other_files_are_not_downloaded(publish: Publish) -> None:
    publish(*BASICS, "model.safetensors", "README.md", "64.tflite", "training.log", ".gitattributes")
    assert files_of(fetch_model("gpt2")).keys() == {*BASICS, "model.safetensors"}


@pytest.mark.parametrize("option", ["model_name", "model_path"])
def test_unknown_model_is_refused_in_one_line(publish: Publish, option: str) -> None:
    publish(listing_error=http_error(RepositoryNotFoundError, "401 Client Error\n\nRepository Not Found for url: ..."))
    with pytest.raises(UserError, match="gtp2 is neither a directory here nor a model on the hub") as caught:
        find_directory("gtp2", option)
    assert caught.value.message.isprintable()
    assert caught.value.option == option


def test_gated_model_is_named_with_the_way_out(publish: Publish) -> None:
    publish(*BASICS, "model.safetensors", download_error=http_error(GatedRepoError, "403 Forbidden\n\nAccess denied"))
    with pytest.raises(UserError, match=r"someone/gated is a gated model: accept its terms.*hf auth login"):
        fetch_model("someone/gated")


def test_private_model_and_refused_login_are_named_with_the_way_out(publish: Publish) -> None:
    publish(listing_error=http_error(RepositoryNotFoundError, "401 Client Error.\n\nRepository Not Found"))
    with pytest.raises(UserError, match="a private model needs `hf auth login`, or set HF_TOKEN"):
        fetch_model("someone/private")
    refused = HfHubHTTPError("Invalid user token.", response=SimpleNamespace(headers={}, request=None, status_code=401))
    publish(listing_error=refused)
    with pytest.raises(UserError, match="the hub does not accept the login: renew it with `hf auth login`, or unset"):
        fetch_model("someone/private")


def test_revision_is_asked_for(publish: Publish) -> None:
    asked: list[str | None] = []
    publish(*BASICS, "model.safetensors", asked=asked)
    fetch_model("gpt2", revision="v2")
    assert asked == ["v2", "v2"]


def test_unknown_revision_is_refused_in_one_line(publish: Publish) -> None:
    publish(listing_error=http_error(RevisionNotFoundError, "404 Client Error.\n\nRevision Not Found"))
    with pytest.raises(UserError, match="v9 is no branch, tag or commit of gpt2") as error:
        fetch_model("gpt2", revision="v9")
    assert error.value.option == "revision"


def test_cached_revision_is_found_without_the_network(
    cache: Path, files: dict[str, Path], dead_network: list[str], model_dir: Path
) -> None:
    snapshot = put(cache, "gpt2", files)
    (snapshot.parent.parent / "refs" / "v2").write_text(COMMIT)
    for revision in ("v2", COMMIT):
        assert resolve_checkpoint("gpt2", revision=revision).directory.resolve() == snapshot.resolve()
    assert hub_commit(snapshot) == COMMIT
    assert hub_commit(model_dir) is None
    assert dead_network == []
    with pytest.raises(
        UserError, match="gpt2 at revision v3 is neither a directory here nor a model in the local cache"
    ):
        fetch_model("gpt2", revision="v3")


@pytest.mark.parametrize("bundled", [True, False])
def test_revision_of_a_directory_is_refused(model_dir: Path, bundled: bool) -> None:
    name = "gpt2-tiny" if bundled else str(model_dir)
    with pytest.raises(UserError, match=f"revision v2 is for models of the hub, and {re.escape(name)} is none"):
        find_directory(name, revision="v2")


def test_adapter_reads_its_model_at_its_revision(cache: Path, files: dict[str, Path], tmp_path: Path) -> None:
    snapshot = put(cache, "gpt2", files)
    (snapshot.parent.parent / "refs" / "main").unlink()
    (snapshot.parent.parent / "refs" / "v2").write_text(COMMIT)
    config = {"peft_type": "LORA", "base_model_name_or_path": "gpt2", "revision": "v2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert base_directory(tmp_path).resolve() == snapshot.resolve()


def test_invalid_name_is_refused_without_the_network(cache: Path, dead_network: list[str]) -> None:
    with pytest.raises(UserError, match=r"a\.\.b is neither a directory here nor a valid name of a hub model"):
        fetch_model("a..b")
    assert dead_network == []


def test_full_disk_is_quoted_in_one_line(publish: Publish) -> None:
    publish(*BASICS, "model.safetensors", download_error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=r"gpt2 could not be downloaded from the hub \(.*No space left"):
        fetch_model("gpt2")


def test_error_of_the_hub_is_quoted_in_one_line(publish: Publish) -> None:
    publish(listing_error=http_error(HfHubHTTPError, "429 Too Many Requests\n\nRetry after 300 s\n"))
    with pytest.raises(UserError, match=r"gpt2.*429 Too Many Requests") as caught:
        fetch_model("gpt2")
    assert caught.value.message.isprintable()


# What huggingface_hub raises when a connection breaks: an error of httpx or, in newer versions, of httpx2.
CONNECTION_ERROR = HfHubHTTPError.__mro__[1]


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("listing_error", CONNECTION_ERROR("Server disconnected without sending a response.")),
        ("download_error", CONNECTION_ERROR("Server disconnected without sending a response.")),
        ("download_error", LocalEntryNotFoundError("Got: ConnectError\nPlease check your internet connection")),
    ],
    ids=["listing", "download", "start of the download"],
)
def test_broken_connection_is_reported_in_one_line(publish: Publish, stage: str, error: Exception) -> None:
    publish(*BASICS, "model.safetensors", **{stage: error})
    with pytest.raises(UserError, match="gpt2") as caught:
        fetch_model("gpt2")
    assert caught.value.message.isprintable()
