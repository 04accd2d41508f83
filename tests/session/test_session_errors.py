"""Errors of commands: printed in one line, and the session continues."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from talk import Talk, greedy_options, greedy_text

from gpt2tg.engine.model import GPT2
from gpt2tg.generation.caches import Caches
from gpt2tg.generation.generator import Generator, load


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/shw", "error: unknown command /shw: did you mean /show?"),
        ("/retyr", "error: unknown command /retyr: did you mean /retry?"),
        ("/temperature 0.5", "error: unknown command /temperature: settings are changed with /set temperature=..."),
        ("/top-p=0.5", "error: unknown command /top-p=0.5: settings are changed with /set top_p=..."),
        ("/xyzzy", "error: unknown command /xyzzy: /help lists all commands"),
        ("/set temprature=1", "error: unknown setting temprature: did you mean temperature?"),
        ("/set xyzzy=1", "error: unknown setting xyzzy: /set lists all settings"),
        ("/set temperature", "error: temperature has no value: write name=value, such as temperature=0.8"),
        ("/set temperature=hot", "error: temperature hot is not valid: give a number"),
        ("/set temperature=-1", "error: temperature -1.0 is out of range: it must be at least 0 and at most 1000000"),
        ("/set top_k=2.5", "error: top_k 2.5 is not valid: give a whole number"),
        ("/set num_sequences=4", "error: num_sequences 4 asked for, but greedy gives 1 sequence: "
         "ask for 1, or choose a strategy that samples, such as decoding=top_p with a temperature above 0"),
        ("/set max_length=9 max_new_tokens=9", "error: max_new_tokens 9 and max_length=9 contradict each other: "
         "give one of the two"),
        ("/set temperature=off", "error: temperature off is not valid: give a number"),
        ("/set suppress_eos=maybe", "error: suppress_eos maybe is not valid: give on or off"),
        ("/set decoding=off", "error: decoding off is unknown: choose from greedy, beam, diverse_beam, sample, top_k, "
         "top_p, beam_sample, contrastive"),
        ('/set decoding="', 'error: decoding=" cannot be read: No closing quotation'),
        ("/retry", "error: greedy is deterministic: choose a strategy that samples, such as /decoding top_p"),
        ("/again", "error: there is no text yet: type its beginning"),
        ("/text", "error: there is no text yet: type its beginning"),
        ("/why", "error: there is no text yet: type its beginning"),
        ("/undo", "error: there is nothing to undo"),
        ("/pick 1", "error: the last turn has one text only: /set num_sequences=3 generates several"),
        ("/compare", "error: there is no prompt yet: write /compare and the beginning of a text"),
        ("/edit", "error: /edit needs a terminal with line editing"),
        ("/candidates none", "error: none is not a valid number of tokens: write 1 or more"),
        ("/save", "error: the file name is missing: write /save story.jsonl"),
        ("/load", "error: the file name is missing: write /load story.jsonl"),
        ("/load nowhere.jsonl", "error: nowhere.jsonl cannot be read: No such file or directory"),
        ("/save no/where.jsonl", "error: no/where.jsonl cannot be written: give a file in a directory that exists"),
        ("/model no/where", "error: model no/where is neither a directory here nor a model in the local cache, and "),
        ("/help me", "error: unknown command /me: did you mean /"),
        ("\udce9", "error: prompt is not UTF-8"),
    ],
)  # fmt: skip
def test_errors_are_printed_and_the_session_continues(generator: Generator, line: str, message: str) -> None:
    talk = Talk(generator, greedy_options())
    written, messages = talk.type(line, "The fox")
    assert len(messages) == 1
    assert messages[0] == message or (messages[0].startswith(message) and message[-1] in " /")
    assert written == greedy_text(generator, "The fox") + "\n"
    assert talk.session.failed_lines == 1


@pytest.mark.parametrize("line", ["A fox", "/retry", "/candidates", "/why", "/model gpt2-tiny"])
def test_out_of_memory_ends_no_session(generator: Generator, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """The text stays, and the next line is answered."""
    talk = Talk(generator, greedy_options())
    talk.type("The fox", "/set decoding=sample")
    before = talk.text

    def without_memory(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    with monkeypatch.context() as patch:
        for place in ((Caches, "lend"), (GPT2, "all_logits"), (GPT2, "__init__")):
            patch.setattr(*place, without_memory)
        _, messages = talk.type(line)
    assert messages == [
        "error: out of memory: lower num_sequences, num_beams or max_new_tokens, or begin a shorter text with /new"
    ]
    assert talk.text == before
    assert talk.type("/set decoding=greedy", "The fox")[0] == greedy_text(generator, "The fox") + "\n"
