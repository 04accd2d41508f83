"""Conversations in a session: /say."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE
from jinja2 import Environment
from talk import Talk, greedy_options

from gpt2tg.generation.generator import Generator, load


@pytest.fixture(scope="module")
def generator(chat_dir: Path) -> Generator:
    return load(str(chat_dir))


def as_text(*contents: str) -> str:
    """Return questions and answers in turn, as the template writes them."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    template = Environment(trim_blocks=True).from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, eos_token="<|endoftext|>", add_generation_prompt=True)


def answer_to(generator: Generator, *contents: str) -> str:
    return generator.generate(as_text(*contents), greedy_options())[0].completion


def test_answers_know_the_history(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    first = answer_to(generator, "owl?")
    assert talk.type("/say owl?")[0] == first.lstrip() + "\n"
    second = answer_to(generator, "owl?", first, "and?")
    assert talk.type("/say and?")[0] == second.lstrip() + "\n"
    shown = f"user: owl?\nassistant: {first.strip()}\nuser: and?\nassistant: {second.strip()}\n"
    assert talk.type("/text")[0] == shown
    talk.type("/undo")
    assert talk.type("/say and?")[0] == second.lstrip() + "\n"
    assert talk.type("/again")[0] == second.lstrip() + "\n"


def test_continue_goes_on_with_the_answer(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    first = answer_to(generator, "owl?")
    more = generator.generate(as_text("owl?") + first, greedy_options())[0].completion
    assert talk.type("/say owl?", "/continue")[0] == f"{first.lstrip()}\n{more}\n"
    assert talk.text == f"user: owl?\nassistant: {(first + more).strip()}"
    last = talk.type("/say and?")[0]
    assert last == answer_to(generator, "owl?", first + more, "and?").lstrip() + "\n"


def test_saved_conversation_continues(generator: Generator, tmp_path: Path) -> None:
    talk, other = Talk(generator, greedy_options()), Talk(generator, greedy_options())
    talk.type("/say owl?", f"/save {tmp_path / 's.jsonl'}")
    written, _ = other.type(f"/load {tmp_path / 's.jsonl'}")
    assert written == talk.text + "\n"
    assert other.type("/say and?")[0] == talk.type("/say and?")[0]


def test_oldest_turns_are_left_out_of_a_full_context(generator: Generator) -> None:
    """64 positions, of which 8 are for the answer."""
    talk = Talk(generator, greedy_options())
    questions = ["the first owl?", "the second owl?", "the third owl?", "the fourth owl?"]
    said = [line for question in questions for line in talk.type(f"/say {question}")[1]]
    assert [line for line in said if line.startswith("(the context is full: the oldest")]
    assert not [line for line in said if "error" in line]
    assert talk.text.count("user: ") == 4


def test_plain_text_begins_anew_after_a_conversation(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    talk.type("/say owl?")
    conversation = talk.text
    assert talk.type("The owl")[0] == generator.generate("The owl", greedy_options())[0].text + "\n"
    talk.type("/undo")
    assert talk.text == conversation
    assert "not a conversation" in Talk(generator, greedy_options(), edit=str).type("/say owl?", "/edit")[1][-1]


def test_why_and_candidates_read_the_conversation(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    written, said = talk.type("/say owl?", "/why", "/candidates 2", "/show")
    assert "mean log-probability" in written
    assert "entropy" in written
    assert said[-1].startswith("text: 1 turn, ")


def test_model_without_a_template_says_what_to_do(model_dir: Path) -> None:
    talk = Talk(load(str(model_dir)), greedy_options())
    assert "has no chat template: fine-tune it on conversations" in talk.type("/say owl?")[1][-1]
    assert "the message is missing" in talk.type("/say")[1][-1]
