"""Another model takes over while texts are generated."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import random_model
from serving_client import Client, serving

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.desk.desk import Desk
from gpt2tg.desk.store import open_store
from gpt2tg.generation.generator import Generator, load, load_checkpoint
from gpt2tg.options import ServingOptions, decoding_options
from gpt2tg.serving import browser
from gpt2tg.serving.app import new_service
from gpt2tg.serving.desk_paths import Page
from gpt2tg.serving.desk_thread import DeskThread
from gpt2tg.serving.models import OtherModels, ServedModel

LONG = {"prompt": "The owl", "max_tokens": 50, "seed": 1, "suppress_eos": True}


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the served model, another one, one that is broken, and something else."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("first", "second", "broken"):
        shutil.copytree(model_dir, folder / name)
    random_model(seed=5).save_pretrained(folder / "second")
    (folder / "broken" / "model.safetensors").write_bytes(b"\0" * 40)
    (folder / "notes").mkdir()
    return folder


def load_other(checkpoint: Checkpoint) -> ServedModel:
    return ServedModel(checkpoint.directory.name, load_checkpoint(checkpoint))


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Page]:
    thread = DeskThread(Desk(open_store(tmp_path / "texts.db")))
    yield Page(thread, OtherModels(folder, load_other))
    thread.close()


@pytest.fixture
def client(folder: Path, page: Page) -> Iterator[Client]:
    with serving(load(str(folder / "first")), web=True, page=page) as found:
        yield found


def expected(generator: Generator) -> str:
    fields = {"max_new_tokens": 50, "seed": 1, "suppress_eos": True, "num_sequences": 1}
    return generator.generate("The owl", decoding_options(fields))[0].completion


def switch(client: Client, name: str) -> Any:
    return client.request("POST", "/api/model", json={"name": name})


def test_texts_keep_their_model_while_another_takes_over(client: Client, folder: Path) -> None:
    async def talk(http: httpx2.AsyncClient, _: object) -> list[str]:
        running = asyncio.ensure_future(http.post("/v1/completions", json=LONG))
        while not client.service.scheduler.size:
            await asyncio.sleep(0.001)
        switched = await http.post("/api/model", json={"name": "second"})
        assert switched.status_code == 200, switched.text
        assert switched.json()["model"] == "second"
        after = await http.post("/v1/completions", json=LONG)
        return [answer.json()["choices"][0]["text"] for answer in (await running, after)]

    assert client.run(talk) == [expected(load(str(folder / name))) for name in ("first", "second")]
    assert [model["id"] for model in client.request("GET", "/v1/models").json()["data"]] == ["second"]
    assert switch(client, "tiny").json()["model"] == "tiny"  # the first one, under its name
    assert client.complete(**LONG).json()["choices"][0]["text"] == expected(load(str(folder / "first")))
    assert len(client.service.scheduler._live) == 1


def test_texts_go_on_while_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    is_done = threading.Event()

    def slow(checkpoint: Checkpoint) -> ServedModel:
        assert is_done.wait(20)
        return load_other(checkpoint)

    with closing(DeskThread(Desk(open_store(tmp_path / "texts.db")))) as thread:
        page = Page(thread, OtherModels(folder, slow))
        with serving(load(str(folder / "first")), web=True, page=page) as client:

            async def talk(http: httpx2.AsyncClient, _: object) -> list[str]:
                switching = asyncio.ensure_future(http.post("/api/model", json={"name": "second"}))
                await asyncio.sleep(0.05)
                during = await asyncio.wait_for(http.post("/v1/completions", json=LONG), 20)
                is_done.set()
                return [during.json()["model"], (await switching).json()["model"]]

            assert client.run(talk) == ["tiny", "second"]


def test_model_that_another_one_follows_is_freed(folder: Path, page: Page) -> None:
    first = load(str(folder / "first"))
    service = new_service(ServedModel("tiny", first), ServingOptions(web=True), page)
    client, gone = Client(service), weakref.ref(first)
    del first
    assert client.complete(prompt="The owl", max_tokens=3).status_code == 200
    assert switch(client, "second").status_code == 200
    gc.collect()
    assert gone() is None
    service.scheduler.stop()


def test_model_that_cannot_be_loaded_leaves_the_old_one(client: Client) -> None:
    listed = client.request("GET", "/api/state").json()["models"]
    assert [(model["name"], model["is_loaded"]) for model in listed] == [
        ("tiny", True),
        ("broken", False),
        ("second", False),
    ]
    for name, status in (("broken", 409), ("notes", 404), ("../first", 404)):
        answer = switch(client, name)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, "name")
        assert "\n" not in error["message"]
    assert "tiny stays" in switch(client, "broken").json()["error"]["message"]
    assert client.complete(prompt="The owl", max_tokens=3).json()["model"] == "tiny"


def test_node_remembers_the_model_that_wrote_it(client: Client) -> None:
    text = client.request("POST", "/api/texts", json={"text": "The owl"}).json()
    switch(client, "second")
    path, fields = f"/api/texts/{text['id']}", {"node": text["current"], "settings": {"max_new_tokens": 3}}
    *_, end = client.request("POST", f"{path}/continue", json=fields).text.strip().split("\n\n")
    assert json.loads(end.removeprefix("data: "))["nodes"][0]["settings"]["model"] == "second"
    session = client.request("GET", f"{path}/export?format=session").text
    assert json.loads(session.split("\n")[0])["model"].endswith("second")


def test_browser_opens_on_a_desktop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    generic = browser.webbrowser.GenericBrowser("lynx"), browser.webbrowser.BackgroundBrowser("firefox")
    monkeypatch.setattr(browser.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, found, is_desktop in (("", generic[1], False), (":0", generic[0], False), (":0", generic[1], True)):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.setattr(browser.webbrowser, "get", lambda found=found: found)
        assert browser.has_desktop() is is_desktop
