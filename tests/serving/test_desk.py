"""The page's own API: texts against those of the command line, tokens against a second reading, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_client import Client, serving

from gpt2tg.desk.desk import Desk
from gpt2tg.desk.store import open_store
from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tokens import inspect_ids, inspect_text
from gpt2tg.options import decoding_options
from gpt2tg.serving import writing
from gpt2tg.serving.desk_paths import Page
from gpt2tg.serving.desk_thread import DeskThread

PROMPT = "The owl sold"
SHORT = {"seed": 3, "max_new_tokens": 12, "suppress_eos": True}


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


class DeskClient:
    """Sends requests to the API of the page."""

    def __init__(self, client: Client) -> None:
        self.client, self.service = client, client.service

    def ask(self, method: str, path: str, status: int = 200, **fields: Any) -> Any:
        answer = self.client.request(method, f"/api/{path}", json=fields)
        assert answer.status_code == status, answer.text
        return answer.json()

    def begin(self, text: str = PROMPT) -> tuple[int, int]:
        """Begin a text; return its number and that of its root."""
        found = self.ask("POST", "texts", 201, text=text)
        return found["id"], found["current"]

    def events(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        answer = self.client.request("POST", f"/api/{path}", json=fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(event.removeprefix("data: ")) for event in answer.text.strip().split("\n\n")]

    def continued(self, text: int, node: int, count: int = 1, **settings: Any) -> list[dict[str, Any]]:
        """Continue a text; return the nodes."""
        *_, end = self.events(f"texts/{text}/continue", node=node, count=count, settings=settings)
        assert end["type"] == "end", end
        nodes: list[dict[str, Any]] = end["nodes"]
        return nodes


@pytest.fixture(scope="module")
def desk(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskClient]:
    thread = DeskThread(Desk(open_store(tmp_path_factory.mktemp("desk") / "texts.db")))
    with serving(generator, web=True, page=Page(thread)) as client:
        yield DeskClient(client)
    thread.close()


def expected(generator: Generator, prompt: str, **options: Any) -> list[str]:
    """The completions of the command line."""
    return [sample.completion for sample in generator.generate(prompt, decoding_options(options))]


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (1, SHORT),
        (3, {"seed": 0, "max_new_tokens": 9, "temperature": 1.2, "stop": ["e"]}),
        (2, {"decoding": "beam", "num_beams": 3, "max_new_tokens": 8}),
        (1, {"decoding": "contrastive", "max_new_tokens": 8}),
        (1, {"decoding": "greedy", "max_length": 30, "repetition_penalty": 1.2, "end_at_sentence": True}),
        (1, {"seed": 4, "overflow": "slide", "max_new_tokens": 70}),
        (1, {"replay": "7/2/1", "max_new_tokens": 12}),
    ],
)
def test_texts_equal_those_of_the_command_line(
    desk: DeskClient, generator: Generator, count: int, settings: dict[str, Any]
) -> None:
    text, root = desk.begin()
    nodes = desk.continued(text, root, count, **settings)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    assert [node["text"] for node in nodes] == expected(generator, PROMPT, num_sequences=count, **options)
    for number, node in enumerate(nodes):
        assert "".join(token["text"] for token in node["tokens"]) == node["text"]
        assert (node["settings"]["candidate"], node["settings"]["model"]) == (number, "tiny")
        again = {name: value for name, value in node["settings"].items() if name in settings or name == "seed"}
        assert again == {"seed": settings.get("seed"), **settings}


def test_continuation_of_an_edited_branch_is_that_of_its_text(desk: DeskClient, generator: Generator) -> None:
    text, root = desk.begin()
    (node,) = desk.continued(text, root, **SHORT)
    edited = f"A {PROMPT}"
    grown = desk.ask("POST", f"texts/{text}/edit", node=node["id"], text=edited)
    (again,) = desk.continued(text, grown["current"], **SHORT)
    assert [again["text"]] == expected(generator, edited, num_sequences=1, **SHORT)
    whole = desk.ask("GET", f"texts/{text}")
    assert (whole["current"], len(whole["nodes"])) == (again["id"], 4)
    assert whole["opening"] == " ".join((edited + again["text"]).split())[:80]


def test_pieces_joined_are_the_nodes_that_are_saved(desk: DeskClient) -> None:
    text, root = desk.begin()
    settings = {**SHORT, "max_new_tokens": 40}
    begin, *pieces, end = desk.events(f"texts/{text}/continue", node=root, count=2, settings=settings, alternatives=3)
    assert (begin["type"], begin["seed"], begin["warnings"]) == ("begin", 3, [])
    for index, node in enumerate(end["nodes"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert len(own) > 1  # a piece holds the tokens that came while the server was busy
        assert "".join(piece["text"] for piece in own) == node["text"]
        assert [token for piece in own for token in piece["tokens"]] == node["tokens"]
        assert node["id"] == begin["nodes"][index]
        assert desk.ask("GET", f"texts/{text}/nodes/{node['id']}") == node
        assert {len(token["alternatives"]) for token in node["tokens"]} == {3}
    assert desk.ask("GET", f"texts/{text}")["current"] == root  # until one of the two is chosen
    chosen = desk.ask("PATCH", f"texts/{text}", current=end["nodes"][1]["id"], title="  Owls \n and more ")
    assert (chosen["current"], chosen["title"]) == (end["nodes"][1]["id"], "Owls and more")
    assert [node["tokens"] is not None for node in chosen["nodes"]] == [False, False, True]
    assert [node["has_tokens"] for node in chosen["nodes"]] == [False, True, True]


def test_tokens_are_as_a_second_reading_finds_them(desk: DeskClient, generator: Generator) -> None:
    text, root = desk.begin()
    context = generator.encode(PROMPT)
    for settings in (SHORT, {"decoding": "beam", "max_new_tokens": 5}):
        (node,) = desk.continued(text, root, **settings)
        read = inspect_ids(generator, context, [token["id"] for token in node["tokens"]], 10)
        for token, other in zip(node["tokens"], read, strict=True):
            assert token["logprob"] == pytest.approx(other.logprob, abs=1e-4)
            assert token["rank"] in (other.rank, None if other.rank > 10 else other.rank)
            assert [part["id"] for part in token["alternatives"]] == [part.id for part in other.alternatives]
            likely = [part.probability for part in other.alternatives]
            assert [part["probability"] for part in token["alternatives"]] == pytest.approx(likely, rel=1e-3)


def test_alternative_makes_a_branch_that_is_found_again(desk: DeskClient, generator: Generator) -> None:
    text, root = desk.begin()
    (node,) = desk.continued(text, root, **SHORT)
    number = next(n for n, token in enumerate(node["tokens"]) if n > 2 and token["text"] and token["rank"] != 2)
    token = node["tokens"][number]
    choice = {"node": node["id"], "token": number, "alternative": 1}
    other = token["alternatives"][1]
    if "\N{REPLACEMENT CHARACTER}" in other["text"]:
        assert desk.ask("POST", f"texts/{text}/choose", 400, **choice)["error"]["param"] == "alternative"
        return
    grown = desk.ask("POST", f"texts/{text}/choose", **choice)
    (branch,) = grown["nodes"]
    before = "".join(part["text"] for part in node["tokens"][:number])
    assert (branch["kind"], branch["parent"], branch["at"]) == ("chosen", node["id"], len(before))
    assert branch["text"] == other["text"]
    assert branch["tokens"][0]["rank"] == 2
    assert branch["tokens"][0]["alternatives"] == token["alternatives"]
    assert desk.ask("POST", f"texts/{text}/choose", **choice)["current"] == branch["id"]
    (after,) = desk.continued(text, branch["id"], **SHORT)
    prompt = PROMPT + before + other["text"]
    assert [after["text"]] == expected(generator, prompt, num_sequences=1, **SHORT)


def test_seed_is_drawn_kept_and_told(desk: DeskClient, generator: Generator) -> None:
    text, root = desk.begin()
    begin, *_, end = desk.events(f"texts/{text}/continue", node=root, settings={"max_new_tokens": 6})
    (node,) = end["nodes"]
    assert node["settings"]["seed"] == begin["seed"]
    assert expected(generator, PROMPT, seed=begin["seed"], max_new_tokens=6, num_sequences=1) == [node["text"]]


def test_warnings_say_what_a_strategy_cannot_do(desk: DeskClient) -> None:
    text, root = desk.begin(PROMPT * 40)
    settings = {"decoding": "greedy", "max_new_tokens": 4, "top_p": 0.5, "min_p": None}
    begin, *_, end = desk.events(f"texts/{text}/continue", node=root, count=3, settings=settings)
    unused, fewer, dropped = begin["warnings"]
    assert unused == "top_p is not used: decoding greedy does not use it"
    assert fewer == "greedy gives 1 of the 3 texts"
    assert "longer than the 64 tokens" in dropped
    assert len(end["nodes"]) == 1


def test_score_measures_a_text_as_inspection_does(desk: DeskClient, generator: Generator) -> None:
    passage = "A fox counted the stars. é😀"
    found, read = desk.ask("POST", "score", text=passage, alternatives=2), inspect_text(generator, passage, 2)
    assert "".join(token["text"] for token in found["tokens"]) == passage
    for token, other in zip(found["tokens"], read, strict=True):
        assert (token["id"], token["rank"]) == (other.id, other.rank)
        assert token["logprob"] == pytest.approx(other.logprob, abs=1e-5)
        assert token["entropy"] == pytest.approx(other.entropy, abs=1e-4)
    nats = -sum(token.logprob for token in read)
    assert found["perplexity"] == pytest.approx(2.718281828459045 ** (nats / len(read)), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / len(passage.encode()), rel=1e-4)
    assert found["words"] == 6


def test_comparison_gives_the_texts_of_the_command_line_and_a_report(desk: DeskClient, generator: Generator) -> None:
    begin, *progress, end = desk.events(
        "compare", prompt=PROMPT, strategies="greedy,top_k:top_k=5,beam", max_new_tokens=8, num_sequences=2,
        settings={"seed": 5},
    )  # fmt: skip
    assert [event["name"] for event in progress] == ["greedy", "top_k top_k=5", "beam"]
    assert (begin["total"], begin["seed"], progress[-1]["done"]) == (3, 5, 3)
    greedy, sampled, beam = end["table"]["rows"]
    assert greedy["texts"] == expected(generator, PROMPT, decoding="greedy", max_new_tokens=8)
    assert sampled["texts"] == expected(
        generator, PROMPT, decoding="top_k", top_k=5, max_new_tokens=8, num_sequences=2, seed=5
    )
    assert beam["texts"] == expected(generator, PROMPT, decoding="beam", max_new_tokens=8, num_sequences=2)
    names = [column["name"] for column in end["table"]["columns"]]
    assert {"perplexity", "distinct_2"} <= set(names) == greedy["values"].keys()
    report = desk.client.request("GET", end["report"])
    assert "top_k top_k=5" in report.text
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert desk.client.request("GET", f"{end['report']}x").status_code == 404


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("edit", {"text": "a"}, "node"),
        ("edit", {"node": "1", "text": "a"}, "node"),
        ("edit", {"node": True, "text": "a"}, "node"),
        ("edit", {"node": 1, "text": None}, "text"),
        ("edit", {"node": 1, "text": "a", "settings": {}}, "settings"),
        ("edit", {"node": 1, "text": "a" * 1_000_001}, "text"),
        ("edit", {"node": 1, "txt": "a"}, "txt"),
        ("choose", {"node": 1, "token": 0, "alternative": 0}, "token"),
        ("choose", {"node": 1, "token": -1, "alternative": 0}, "token"),
        ("continue", {"node": 1, "count": 9}, "count"),
        ("continue", {"node": 1, "alternatives": 21}, "alternatives"),
        ("continue", {"node": 1, "settings": {"temprature": 1}}, "temprature"),
        ("continue", {"node": 1, "settings": {"num_sequences": 2}}, "num_sequences"),
        ("continue", {"node": 1, "settings": {"temperature": "hot"}}, "temperature"),
        ("continue", {"node": 1, "settings": {"top_p": 1.5}}, "top_p"),
        ("continue", {"node": 1, "settings": {"stop": [""]}}, "stop"),
        ("continue", {"node": 1, "settings": {"stop": ["a"] * 65}}, "stop"),
        ("continue", {"node": 1, "settings": {"max_new_tokens": 10**9}}, "max_new_tokens"),
        ("continue", {"node": 1, "settings": {"decoding": "beam", "num_beams": 65}}, "num_beams"),
        ("continue", {"node": 1, "settings": []}, "settings"),
    ],
)
def test_wrong_field_is_named(desk: DeskClient, path: str, fields: dict[str, Any], param: str) -> None:
    text, root = desk.begin()
    fields = {**fields, "node": root} if fields.get("node") == 1 and fields["node"] is not True else fields
    content = json.dumps(fields)
    answer = desk.client.request("POST", f"/api/texts/{text}/{path}", content=content)
    if len(content) > 1_000_000:
        assert answer.status_code == 413
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert param in error["message"]
    assert "--" not in error["message"]
    assert len(desk.ask("GET", f"texts/{text}")["nodes"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "texts/99999", None),
        ("GET", f"texts/{10**30}", None),
        ("PATCH", "texts/99999", {"title": "a"}),
        ("DELETE", "texts/99999", None),
        ("POST", "texts/99999/restore", None),
        ("POST", "texts/99999/edit", {"node": 1, "text": "a"}),
        ("POST", "texts/99999/continue", {"node": 1}),
        ("GET", "texts/1/nodes/99999", None),
        ("GET", "texts/99999/export", None),
        ("POST", "model", {"name": "other"}),
    ],
)
def test_what_does_not_exist_is_not_found(desk: DeskClient, method: str, path: str, fields: Any) -> None:
    answer = desk.client.request(method, f"/api/{path}", json=fields)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("there is no")


def test_texts_are_listed_named_deleted_and_restored(desk: DeskClient) -> None:
    text, _ = desk.begin("Two bells argued\nabout the hour")
    (entry,) = [found for found in desk.ask("GET", "texts") if found["id"] == text]
    assert (entry["title"], entry["opening"], entry["words"]) == ("", "Two bells argued about the hour", 6)
    assert desk.ask("PATCH", f"texts/{text}", settings={"temperature": 0.5})["settings"] == {"temperature": 0.5}
    assert desk.ask("PATCH", f"texts/{text}", title='Bells "settings"')["settings"] == {"temperature": 0.5}
    assert desk.ask("PATCH", f"texts/{text}", 400, settings={"temperature": -1})["error"]["param"] == "temperature"
    assert desk.client.request("DELETE", f"/api/texts/{text}").status_code == 204
    assert text not in [found["id"] for found in desk.ask("GET", "texts")]
    assert desk.ask("POST", f"texts/{text}/restore")["title"] == 'Bells "settings"'
    desk.ask("PATCH", f"texts/{text}", 400, title="a" * 201)


def test_state_has_all_that_the_page_shows(desk: DeskClient) -> None:
    state = desk.ask("GET", "state")
    (model,) = state["models"]
    assert (model["name"], model["is_loaded"], model["kind"]) == ("tiny", True, "model")
    assert (state["positions"], state["defaults"]) == (64, {"overflow": "truncate", "max_new_tokens": 32})
    assert {"greedy", "beam", "top_p"} <= {strategy["name"] for strategy in state["strategies"]}
    assert all(setting["label"] and setting["help"] for setting in state["settings"])


def test_page_loads_nothing_from_elsewhere(desk: DeskClient) -> None:
    for path in ("/", "/static/index.html"):
        answer = desk.client.request("GET", path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not re.search(r"(src|href)=\"?(https?:)?//", answer.text)
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/none"):
        assert desk.client.request("GET", path).status_code == 404
    assert desk.client.request("GET", "/api/state", headers={"origin": "http://evil.example"}).status_code == 403
    assert desk.client.request("GET", "/", headers={"host": "evil.example"}).status_code == 403


def test_key_is_needed_for_texts_but_not_for_the_page(generator: Generator, tmp_path: Path) -> None:
    thread = DeskThread(Desk(open_store(tmp_path / "texts.db")))
    with serving(generator, web=True, api_key="secret", page=Page(thread)) as client:
        assert client.request("GET", "/").status_code == 200
        assert client.request("GET", "/static/index.html").status_code == 200
        assert client.request("GET", "/api/reports/unknown").status_code == 404
        for path in ("/api/state", "/api/texts", "/api", "/v1/models", "/static"):
            assert client.request("GET", path).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert client.request("GET", "/api/state", headers=key).status_code == 200
    thread.close()


def test_server_without_the_page_has_none_of_it(generator: Generator) -> None:
    with serving(generator) as client:
        for path in ("/", "/static/index.html", "/api/state"):
            assert client.request("GET", path).status_code == 404
        assert not [path for path in client.request("GET", "/openapi.json").json()["paths"] if "api/" in path]


def test_paths_of_the_description_are_those_of_the_server(desk: DeskClient) -> None:
    described = desk.client.request("GET", "/openapi.json").json()["paths"]
    there = {
        (re.sub(r":\w+(?=})", "", route.path), method.lower())
        for route in desk.service.app.routes
        if getattr(route, "methods", None) and route.path != "/"
        for method in route.methods
        if method != "HEAD"
    }
    assert there == {(path, method) for path, entry in described.items() for method in entry if method != "parameters"}


def test_client_that_stops_keeps_what_was_written(desk: DeskClient) -> None:
    text, root = desk.begin()
    body = {"node": root, "count": 2,
            "settings": {"seed": 1, "overflow": "slide", "max_new_tokens": 100_000, "suppress_eos": True}}  # fmt: skip

    async def talk() -> list[bytes]:
        gone, sent = asyncio.Event(), list[bytes]()
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        scope = {"type": "http", "method": "POST", "path": f"/api/texts/{text}/continue", "query_string": b"",
                 "headers": [(b"host", b"localhost")]}  # fmt: skip
        answering = asyncio.ensure_future(desk.service.app(scope, receive, send))
        while len(sent) < 12:
            await asyncio.sleep(0.002)
        gone.set()
        await answering
        return sent

    sent = asyncio.run(talk())
    events = [json.loads(event[6:]) for event in b"".join(sent).decode().strip().split("\n\n")]
    whole = desk.ask("GET", f"texts/{text}")
    for index, node in enumerate(whole["nodes"][1:]):
        shown = "".join(event["text"] for event in events if event.get("index") == index)
        assert node["text"].startswith(shown)
        assert node["finish_reason"] == "interrupted"


def test_edit_meets_the_text_that_was_already_shown(desk: DeskClient) -> None:
    """What the page has shown of a growing text counts as generated, though it was not saved yet."""
    text, root = desk.begin()

    async def talk(http: httpx2.AsyncClient, _: object) -> dict[str, Any]:
        settings = {"seed": 1, "max_new_tokens": 50, "suppress_eos": True}
        body = {"node": root, "settings": settings}
        writing = asyncio.ensure_future(http.post(f"/api/texts/{text}/continue", json=body))
        nodes: list[dict[str, Any]] = []
        while len(nodes) < 2 or not nodes[1]["text"]:
            nodes = (await http.get(f"/api/texts/{text}")).json()["nodes"]
        assert not writing.done()
        edit = {"node": nodes[1]["id"], "text": PROMPT + nodes[1]["text"] + "!"}
        edited = (await http.post(f"/api/texts/{text}/edit", json=edit)).json()
        await writing
        return {"node": nodes[1], "edited": edited["nodes"][0]}

    found = desk.client.run(talk)
    assert found["edited"]["parent"] == found["node"]["id"]
    assert found["edited"]["at"] == len(found["node"]["text"])
    assert found["edited"]["text"] == "!"


def test_texts_are_saved_as_files_and_opened_again(desk: DeskClient) -> None:
    text, root = desk.begin()
    (node,) = desk.continued(text, root, **SHORT)
    desk.ask("PATCH", f"texts/{text}", title='Owls: "a/b" é')
    for form, end in (("txt", ".txt"), ("session", ".jsonl"), ("json", ".json")):
        file = desk.client.request("GET", f"/api/texts/{text}/export?format={form}")
        assert file.headers["content-disposition"] == f"attachment; filename*=UTF-8''Owls%20a%20b%20%C3%A9{end}"
        opened = desk.client.request("POST", f"/api/import?name=again{end}", content=file.content)
        assert opened.status_code == 201, opened.text
        again = opened.json()
        assert "".join(part["text"] for part in again["nodes"]) == PROMPT + node["text"]
        if form != "txt":
            assert again["nodes"][1]["settings"] == node["settings"]
            assert [token["text"] for token in again["nodes"][1]["tokens"]] == [t["text"] for t in node["tokens"]]
        assert again["title"] == ('Owls: "a/b" é' if form == "json" else "again")
    part = desk.client.request("GET", f"/api/texts/{text}/export?node={root}")
    assert part.text == PROMPT
    for query, param in (("format=pdf", "format"), ("node=x", "node")):
        refused = desk.client.request("GET", f"/api/texts/{text}/export?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    for content in (b"\xff", b'{"gpt2tg_session": 1}', b'{"gpt2tg_text": 1'):
        refused = desk.client.request("POST", "/api/import?name=broken.x", content=content)
        assert refused.status_code == 400
        assert "broken.x" in refused.json()["error"]["message"]


LONG = {"seed": 1, "overflow": "slide", "max_new_tokens": 100_000, "suppress_eos": True}


def test_full_server_refuses_and_adds_no_node(generator: Generator, tmp_path: Path) -> None:
    thread = DeskThread(Desk(open_store(tmp_path / "texts.db")))
    with serving(generator, web=True, max_rows=1, max_waiting=0, page=Page(thread)) as client:
        desk = DeskClient(client)
        text, root = desk.begin()

        async def talk(http: httpx2.AsyncClient, _: object) -> None:
            path, body = f"/api/texts/{text}/continue", {"node": root, "settings": LONG}
            running = asyncio.ensure_future(http.post(path, json=body))
            while not client.service.scheduler.size:
                await asyncio.sleep(0.002)
            refused = await http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
            scored = await http.post("/api/score", json={"text": "A fox"})
            assert scored.status_code == 429
            await asyncio.to_thread(client.service.scheduler.stop)
            *_, last = (await running).text.strip().split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"

        client.run(talk)
        nodes = desk.ask("GET", f"texts/{text}")["nodes"]
        assert [(node["kind"], node["finish_reason"]) for node in nodes[1:]] == [("generated", "interrupted")]
        assert desk.ask("POST", "model", 404, name="other")["error"]["param"] == "name"
        assert desk.ask("POST", f"texts/{text}/continue", 503, node=root)["error"]["code"] == "shutting_down"
    thread.close()


def test_failed_strategy_of_a_comparison_is_told(desk: DeskClient) -> None:
    for fields, param in (
        ({"strategies": "gredy"}, "strategies"),
        ({"strategies": "top_p:top_p=2"}, "strategies"),
        ({"settings": {"overflow": "never"}}, "overflow"),
        ({"settings": {"overflow": "error"}, "max_new_tokens": 64}, "max_new_tokens"),
        ({"strategies": "beam:num_beams=65"}, "strategies"),
    ):
        answer = desk.client.request("POST", "/api/compare", json={"prompt": PROMPT, **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_pieces_that_could_not_be_saved_are_saved_later(
    desk: DeskClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grow, failures = Desk.grow, iter(range(3))

    def failing(self: Desk, pieces: Any) -> None:
        if next(failures, None) is not None:
            raise sqlite3.OperationalError("database or disk is full")
        grow(self, pieces)

    monkeypatch.setattr(writing, "SAVING_TIME", 0.001)
    monkeypatch.setattr(Desk, "grow", failing)
    text, root = desk.begin()
    *pieces, end = desk.events(f"texts/{text}/continue", node=root, settings={**SHORT, "max_new_tokens": 60})
    shown = "".join(piece["text"] for piece in pieces if piece["type"] == "piece")
    assert (end["nodes"][0]["text"], next(failures, None)) == (shown, None)
    assert capsys.readouterr().err.count("a text could not be saved") == 1


def test_full_disk_at_the_end_is_told_to_the_page(desk: DeskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Desk, "grow", full)
    text, root = desk.begin()
    *_, end = desk.events(f"texts/{text}/continue", node=root, settings=SHORT)
    assert (end["type"], "disk is full" in end["error"]["message"]) == ("error", True)


def test_names_of_files_hide_nothing(desk: DeskClient) -> None:
    """A right-to-left override would show `gpj.txt` as the end of the name; quotes and lines would end the header."""
    title = '../a"b\u202egpj\u2066\x7f;filename=x.exe'
    text = desk.ask("POST", "texts", 201, title=title)["id"]
    header = desk.client.request("GET", f"/api/texts/{text}/export").headers["content-disposition"]
    assert header == "attachment; filename*=UTF-8''a%20b%20gpj%20%3Bfilename%3Dx.exe.txt"


@pytest.mark.parametrize("name", ["at", "ids", "candidate", "id", "logprob", "rank", "probability"])
def test_huge_number_in_a_file_is_no_failure_of_the_server(desk: DeskClient, name: str) -> None:
    text, root = desk.begin()
    desk.continued(text, root, **SHORT)
    tree = desk.client.request("GET", f"/api/texts/{text}/export?format=json").text
    huge = re.sub(rf'"{name}": (\[)?[-0-9.e]+', rf'"{name}": \g<1>{"9" * 400}', tree)
    assert huge != tree
    assert desk.client.request("POST", "/api/import?name=a.json", content=huge.encode()).status_code in (201, 400)


def test_session_with_half_a_character_is_refused(desk: DeskClient) -> None:
    text, _ = desk.begin("The owl \N{OWL}")
    session = desk.client.request("GET", f"/api/texts/{text}/export?format=session").text
    halved = session.replace("\N{OWL}", "\\ud83e").replace("\\ud83e\\udd89", "\\ud83e")
    assert halved != session
    assert desk.client.request("POST", "/api/import?name=a.jsonl", content=halved.encode()).status_code == 400


def test_foreign_page_changes_no_text(desk: DeskClient) -> None:
    """A page may send such a request without asking first; only its Origin tells it from ours."""
    text, _ = desk.begin()
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        headers = {"origin": origin, "content-type": "text/plain"}
        for method, path in (("POST", "texts"), ("DELETE", f"texts/{text}"), ("PATCH", f"texts/{text}")):
            answer = desk.client.request(method, f"/api/{path}", headers=headers, content=b'{"title": "taken"}')
            assert answer.status_code == 403
    assert desk.ask("GET", f"texts/{text}")["title"] == ""


@pytest.mark.parametrize("path", ["/static/..%2f..%2frun.py", "/static/%2e%2e/run.py", "/api/reports/..%2f..%2fetc"])
def test_paths_lead_nowhere_else(desk: DeskClient, path: str) -> None:
    assert desk.client.request("GET", path).status_code == 404
