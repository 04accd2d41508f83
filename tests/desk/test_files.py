"""Files of texts: sessions of the terminal in both directions, whole trees, plain texts, and broken ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2tg.desk.desk import Desk
from gpt2tg.desk.files import as_session, as_tree, read_file, tree_content
from gpt2tg.desk.store import open_store
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.text_files import Author, fingerprint
from gpt2tg.session.files import SavedSession, load_session, session_content
from gpt2tg.session.turns import Turn

OPTIONS = DecodingOptions(seed=3, num_sequences=2, max_new_tokens=6, stop=("never",))


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with closing(open_store(tmp_path / "texts.db")) as store:
        yield Desk(store)


def author(generator: Generator) -> Author:
    model = ServedModel("tiny", generator)
    return Author(model, fingerprint(model))


def session(generator: Generator, weights: str | None) -> SavedSession:
    """A session of three turns, the first of which was continued with its second text."""
    first = generator.generate("The owl", OPTIONS)[1]
    one = replace(OPTIONS, seed=4, num_sequences=1)
    second = generator.generate(f"{first.text} and", one)[0]
    turns = (
        Turn("The owl", first.completion, OPTIONS, 1, first.finish_reason, first.ids),
        Turn(" and", second.completion, one, 0, second.finish_reason, second.ids),
        Turn(" typed only"),
    )
    return SavedSession("other/name", replace(OPTIONS, temperature=0.9), frozenset(), turns, weights)


def test_saved_session_opens_as_a_text_and_comes_back(desk: Desk, generator: Generator, tmp_path: Path) -> None:
    saved = session(generator, author(generator).weights)
    imported = read_file(session_content(saved).encode(), "story.jsonl", author(generator))
    text = desk.add_imported(imported)
    view = desk.view(text)
    assert [(node.kind, node.text) for node in view.nodes] == [
        ("typed", "The owl"),
        ("generated", saved.turns[0].written),
        ("typed", " and"),
        ("generated", saved.turns[1].written),
        ("typed", " typed only"),
    ]
    assert view.text.entry.title == "story"
    assert view.text.settings == {"seed": 3, "max_new_tokens": 6, "stop": ["never"], "temperature": 0.9}
    for node in (view.nodes[1], view.nodes[3]):
        assert node.tokens is not None
        assert "".join(token["text"] for token in node.tokens) == node.text
        assert [token["id"] for token in node.tokens] == list(node.ids)[: len(node.tokens)]
    file = tmp_path / "again.jsonl"
    path = desk.store.path(view.text.current)
    settings = {**dataclasses.asdict(saved.options), "num_sequences": 2}
    file.write_text(as_session(path, settings, saved.model, saved.weights), encoding="utf-8")
    assert load_session(file) == saved


def test_tokens_of_another_model_are_not_spelt(desk: Desk, generator: Generator) -> None:
    for weights in (None, "0" * 64):
        imported = read_file(session_content(session(generator, weights)).encode(), "a", author(generator))
        assert [node.tokens for node in imported.nodes] == [None] * 5


def test_exported_branch_generates_each_turn_again(desk: Desk, generator: Generator, tmp_path: Path) -> None:
    """A generated node that an alternative has cut becomes a part of what the next turn begins with."""
    text = desk.new_text("", "The owl")
    root = desk.view(text).text.current
    settings = {**dataclasses.asdict(OPTIONS), "model": "tiny", "candidate": 1}
    (node,) = desk.begin(text, root, [settings])
    sample = generator.generate("The owl", OPTIONS)[1]
    desk.grow({node: (sample.completion, [])})
    desk.finish(text, {node: (sample.finish_reason, sample.ids)})
    edited = desk.edit(text, node, f"The owl{sample.completion[:3]} new").current
    one = replace(OPTIONS, num_sequences=1)
    (last,) = desk.begin(text, edited, [{**dataclasses.asdict(one), "model": "tiny", "candidate": 0}])
    again = generator.generate(f"The owl{sample.completion[:3]} new", one)[0]
    desk.grow({last: (again.completion, [])})
    desk.finish(text, {last: (again.finish_reason, again.ids)})
    for number, (end, count) in enumerate(((node, 1), (last, 1), (edited, 1))):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(as_session(desk.store.path(end), {}, "tiny", None), encoding="utf-8")
        turns = load_session(file).turns
        assert len(turns) == count
        before = ""
        for turn in turns:
            before += turn.typed
            if turn.options is not None:
                assert generator.generate(before, turn.options)[turn.choice].completion == turn.written
            before += turn.written
        assert before == desk.prompt(text, end)


def test_conversation_opens_as_plain_text_and_says_so(desk: Desk, generator: Generator) -> None:
    turns = (Turn("Who is there?", " Nobody.", OPTIONS, is_said=True), Turn("And now?", is_said=True))
    saved = SavedSession("tiny", OPTIONS, frozenset(), turns)
    imported = read_file(session_content(saved).encode(), "talk", author(generator))
    assert [node.text for node in imported.nodes] == ["user: Who is there?\nassistant: Nobody.\nuser: And now?"]
    assert imported.warnings == ["a conversation is opened as the plain text of its messages"]


def test_tree_comes_back_with_all_its_branches(desk: Desk, generator: Generator) -> None:
    text = desk.new_text("A title", "Once", {"temperature": 0.5})
    root = desk.view(text).text.current
    (node,) = desk.begin(text, root, [{**dataclasses.asdict(OPTIONS), "model": "tiny", "candidate": 0}])
    likely = [{"id": 0, "text": "<|endoftext|>", "probability": 0.5, "is_special": True}]
    token = {"id": 5, "text": " upon", "logprob": -2.3, "rank": None, "entropy": None, "alternatives": likely}
    desk.grow({node: (" upon", [token])})
    desk.finish(text, {node: ("length", [5])})
    desk.edit(text, node, "Once more")
    desk.change_node(text, node, name="a", is_pruned=True)
    content = tree_content(desk.view(text, with_all_tokens=True))
    imported = read_file(content.encode(), "a.json", author(generator))
    again = desk.view(desk.add_imported(imported), with_all_tokens=True)
    assert as_tree(again) == as_tree(desk.view(text, with_all_tokens=True))


def test_plain_text_opens_without_its_mark_and_with_plain_line_ends(desk: Desk, generator: Generator) -> None:
    for content in (b"\xef\xbb\xbfOne\r\ntwo", b'{"a": 1}\nis no session', b""):
        imported = read_file(content, "notes.txt", author(generator))
        expected = content.decode("utf-8-sig").replace("\r\n", "\n")
        assert [(node.kind, node.text) for node in imported.nodes] == [("typed", expected)]
        assert imported.title == "notes"


def broken(change: str) -> bytes:
    tree = {
        "gpt2tg_text": 1, "title": "", "settings": {}, "current": 1,
        "nodes": [
            {"parent": None, "at": 0, "kind": "typed", "text": "Once", "name": None, "settings": None,
             "finish_reason": None, "pruned": False, "ids": [], "tokens": None},
            {"parent": 0, "at": 4, "kind": "generated", "text": "a", "name": None, "settings": {"temperature": 1.0},
             "finish_reason": "length", "pruned": False, "ids": [1], "tokens": None},
        ],
    }  # fmt: skip
    exec(change, {"tree": tree, "node": tree["nodes"][1]})  # type: ignore[index]
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "change",
    [
        "tree['gpt2tg_text'] = 2",
        "tree['current'] = 2",
        "tree['current'] = True",
        "tree['nodes'] = []",
        "tree['title'] = None",
        "del node['at']",
        "node['at'] = 5",
        "node['at'] = -1",
        "node['parent'] = 1",
        "node['parent'] = None",
        "node['parent'] = True",
        "node['kind'] = 'other'",
        "node['text'] = 5",
        "node['ids'] = [-1]",
        "node['settings'] = {'temperature': -1.0}",
        "node['tokens'] = [{'text': 'b'}]",
        "node['tokens'] = [5]",
        "tree['nodes'][0] = 5",
    ],
)
def test_broken_tree_is_refused_in_one_line(generator: Generator, change: str) -> None:
    assert read_file(broken("pass"), "a.json", author(generator)).current == 1
    with pytest.raises(UserError, match=r"a\.json"):
        read_file(broken(change), "a.json", author(generator))


def test_other_broken_files_are_refused(generator: Generator, desk: Desk) -> None:
    saved = session_content(session(generator, None))
    for content in (b"\xff\xfe", saved.encode()[:-5], saved.split("\n", 1)[0].encode(), b'{"gpt2tg_text": 1'):
        with pytest.raises(UserError):
            read_file(content, "a.jsonl", author(generator))
    with pytest.raises(UserError, match="characters"):
        desk.add_imported(read_file(b"a" * 1_000_001, "a.txt", author(generator)))
    assert desk.store.entries() == []
