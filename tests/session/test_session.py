"""The interactive session, by transcript: what is typed in, what comes out on which stream."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import FABLES

from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tables import candidate_table
from gpt2tg.inspection.tokens import inspect_ids, next_token
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.session import Front, Session
from gpt2tg.session.completion import completions
from gpt2tg.session.front import Style
from gpt2tg.session.settings import FIELDS, changed, without_dashes
from gpt2tg.session.state import Turn


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def settings(**given: object) -> DecodingOptions:
    return decoding_options({"decoding": "greedy", "max_new_tokens": 8, **given}, num_sequences=1)


def drawing(**given: object) -> DecodingOptions:
    """Texts that do not end by themselves: a seed nobody chose may draw the end at once."""
    return settings(**{"decoding": "sample", "temperature": 1.0, "suppress_eos": True, **given})


class Talk:
    """A session, with what it has written and said."""

    def __init__(
        self,
        generator: Generator,
        options: DecodingOptions,
        *,
        at_terminal: bool = True,
        edit: Callable[[str], str] | None = None,
        style: Style = Style(),  # noqa: B008
    ) -> None:
        self._written: list[str] = []
        self.said: list[str] = []
        self.lines: list[object] = []
        front = Front(self._read, self._write, self.said.append, edit, style, lambda: 80, at_terminal)
        self.session = Session(generator, options, "tiny", front, partial(load, option="model"))
        self.interrupt_after = -1

    def _read(self) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    def _write(self, text: str) -> None:
        self._written.append(text)
        self.interrupt_after -= 1
        if self.interrupt_after == 0:
            raise KeyboardInterrupt

    def type(self, *lines: object) -> tuple[str, list[str]]:
        """What is written and said while these lines are typed; an exception is raised as typed."""
        self._written.clear()
        self.said.clear()
        self.lines = list(lines)
        self.session.run()
        return "".join(self._written), list(self.said)

    @property
    def text(self) -> str:
        return str(self.session.text)


def transcript(generator: Generator, options: DecodingOptions, *lines: object) -> tuple[str, list[str]]:
    return Talk(generator, options).type(*lines)


def greedy_text(generator: Generator, prompt: str) -> str:
    return generator.generate(prompt, settings())[0].text


# --- prompts ----------------------------------------------------------------------------------------------------


def test_a_prompt_is_continued(generator: Generator) -> None:
    written, said = transcript(generator, settings(), "The fox", "The owl")
    assert written == f"{greedy_text(generator, 'The fox')}\n{greedy_text(generator, 'The owl')}\n"
    assert said == []


def test_the_continuation_is_streamed(generator: Generator) -> None:
    talk = Talk(generator, settings())
    talk.type("The fox")
    assert len(talk._written) > 4


def test_a_text_of_several_lines(generator: Generator) -> None:
    assert transcript(generator, settings(), "The fox\nand")[0] == greedy_text(generator, "The fox\nand") + "\n"


def test_a_text_that_begins_with_a_slash(generator: Generator) -> None:
    assert transcript(generator, settings(), "//fox")[0] == greedy_text(generator, "/fox") + "\n"


def test_blank_lines_are_passed_over(generator: Generator) -> None:
    assert transcript(generator, settings(), "", "   ") == ("", [])


def test_quit_leaves_at_once(generator: Generator) -> None:
    for word in ("/quit", "/quit now", "/exit", "/Quit"):
        assert transcript(generator, settings(), word, "The fox") == ("", [])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("quit", "/quit"),
        ("exit", "/quit"),
        ("Quit ", "/quit"),
        ("help", "/help"),
        ("?", "/help"),
        ("temperature=0.5", "/set temperature=0.5"),
        ("set top-p=0.5", "/set top-p=0.5"),
    ],
)
def test_commands_without_their_slash_are_asked_back(generator: Generator, word: str, meant: str) -> None:
    """A person at a terminal forgot it; a file of prompts means what it says."""
    written, said = transcript(generator, settings(), word)
    assert written == ""
    assert said == [f"Did you mean {meant}? To continue the words themselves: /new {word.strip()}"]
    assert transcript(generator, settings(), "x=1")[1] == []
    piped, _ = Talk(generator, settings(), at_terminal=False).type(word)
    assert piped == greedy_text(generator, word) + "\n"


def test_the_seed_of_each_text_is_said_and_brings_it_back(generator: Generator) -> None:
    written, said = transcript(generator, drawing(), "The fox")
    seed = int(said[0].removeprefix("(seed ").removesuffix(")"))
    assert transcript(generator, drawing(seed=seed), "The fox")[0] == written
    assert transcript(generator, drawing(), f"/seed {seed}", "The fox")[0] == written


def test_a_replay_brings_back_one_text_of_several(generator: Generator) -> None:
    third = generator.generate("The fox", drawing(seed=7, num_sequences=3))[2]
    written, said = transcript(generator, drawing(replay="7/0/2"), "The fox")
    assert written == third.text + "\n"
    assert said == ["(replay 7/0/2)"]


def test_why_a_text_ended_is_said(generator: Generator) -> None:
    text = greedy_text(generator, "The fox").removeprefix("The fox")
    written, said = transcript(generator, settings(stop=(text[3:5],)), "The fox")
    assert written == "The fox" + text[: text.index(text[3:5])] + "\n"
    assert said == ["(ended at a stop string)"]


# --- a text that grows --------------------------------------------------------------------------------------------


def test_continue_hands_the_whole_text_on(generator: Generator) -> None:
    talk = Talk(generator, settings())
    talk.type("The fox")
    first = greedy_text(generator, "The fox")
    assert talk.text == first
    written, _ = talk.type("/continue")
    second = greedy_text(generator, first)
    assert first + written == second + "\n"
    written, _ = talk.type("/continue and the owl")
    third = greedy_text(generator, second + " and the owl")
    assert second + written == third + "\n"
    assert talk.text == third
    assert talk.type("/text")[0] == third + "\n"


def test_words_are_joined_as_one_writes(generator: Generator) -> None:
    talk = Talk(generator, settings())
    talk.type("The fox", "/continue , he said")
    assert talk.session.text.turns[1].typed == ", he said"
    talk.type("The fox", '/continue "Yes," he said')
    assert talk.session.text.turns[1].typed == ' "Yes," he said'
    talk.type("The fox\n", "/undo", "/undo")
    talk.session.text.change(())
    talk.type("/continue The owl")
    assert talk.text == greedy_text(generator, "The owl")


def test_the_model_may_begin_by_itself(generator: Generator) -> None:
    written, _ = transcript(generator, settings(), "/continue")
    assert written == generator.generate("", settings())[0].text + "\n"
    talk = Talk(generator, settings())
    talk.type("The fox", "/new")
    assert talk.text == ""
    assert talk.type("/continue")[0] == written


def test_retry_draws_anew_and_again_does_not(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=7))
    first, _ = talk.type("The fox")
    second, said = talk.type("/retry")
    assert second == generator.generate("The fox", drawing(seed=7, num_sequences=2))[1].text + "\n"
    assert second != first
    assert said == ["(replay 7/0/1)"]
    assert talk.type("/again") == (second, said)
    talk.type("/undo")
    assert talk.text + "\n" == first  # to write the same again was no change
    talk.type("/again", "/retry")
    assert talk.text + "\n" == second
    third, said = talk.type("/retry")
    assert third not in (first, second)
    assert said == ["(replay 7/0/2)"]
    assert talk.text + "\n" == third


def test_retry_without_a_seed_and_after_another_strategy(generator: Generator) -> None:
    talk = Talk(generator, drawing())
    _, said = talk.type("The fox")
    seed = said[0].removeprefix("(seed ").removesuffix(")")
    assert talk.type("/retry")[1] == [f"(replay {seed}/0/1)"]
    talk.type("/decoding greedy", "The fox")
    assert talk.type("/retry")[1] == [
        "error: greedy writes the same text every time: choose /decoding top_p, say, to draw"
    ]
    assert talk.type("/decoding top_p", "/retry")[1][-1].startswith("(seed ")


def test_again_takes_the_seed_and_the_settings_of_now(generator: Generator) -> None:
    talk = Talk(generator, drawing())
    _, said = talk.type("The fox")
    seed = int(said[0].removeprefix("(seed ").removesuffix(")"))
    written, _ = talk.type("/set temperature=0.3", "/again")
    assert written == generator.generate("The fox", drawing(seed=seed, temperature=0.3))[0].text + "\n"


def test_retry_of_a_later_turn_leaves_the_earlier_ones(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=1))
    talk.type("The fox")
    before = talk.text
    talk.type("/continue and")
    written, _ = talk.type("/retry")
    assert talk.text + "\n" == before + written
    assert written.startswith(" and")
    assert len(talk.session.text.turns) == 2


def test_undo_takes_back_every_change(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=1), edit=lambda text: text + "!")
    texts = [""]
    for line in ("The fox", "/continue", "/retry", "/edit", "/continue then", "/new", "The owl"):
        talk.type(line)
        texts.append(talk.text)
    for text in reversed(texts[:-1]):
        talk.type("/undo")
        assert talk.text == text
    assert talk.type("/undo")[1] == ["error: there is nothing to take back"]


def test_the_end_of_the_text_is_shown_after_undo(generator: Generator) -> None:
    talk = Talk(generator, settings())
    _, said = talk.type("The fox", "/continue", "/undo")
    assert said == [f"The text ends: {' '.join(greedy_text(generator, 'The fox').split())}"]
    assert talk.type("/undo")[1] == ["The text is empty."]


def test_edit(generator: Generator) -> None:
    shown: list[str] = []

    def edit(text: str) -> str:
        shown.append(text)
        return "The owl slept"

    talk = Talk(generator, settings(), edit=edit)
    talk.type("The fox")
    before = talk.text
    assert talk.type("/edit") == ("", ["The text ends: The owl slept"])
    assert shown == [before]
    assert talk.text == "The owl slept"
    assert talk.type("/edit")[1] == ["The text is as it was."]
    talk.type("/continue")
    assert talk.text == greedy_text(generator, "The owl slept")


def test_an_edit_given_up_changes_nothing(generator: Generator) -> None:
    def edit(_: str) -> str:
        raise KeyboardInterrupt

    talk = Talk(generator, settings(), edit=edit)
    talk.type("The fox")
    before = talk.text
    assert talk.type("/edit", "/text") == (before + "\n", ["The text is as it was."])


def test_several_texts_and_the_one_to_go_on_with(generator: Generator) -> None:
    options = drawing(seed=5, num_sequences=3)
    talk = Talk(generator, options)
    samples = generator.generate("The fox", options)
    written, said = talk.type("The fox")
    assert written == "".join(f"{sample.text}\n\n" for sample in samples)
    assert said[-2:] == ["The text goes on with number 1; /pick takes another.", "(seed 5)"]
    assert talk.text == samples[0].text
    talk.type("/pick 3")
    assert talk.text == samples[2].text
    assert talk.type("/pick 4")[1] == ["error: 4 is not a text: write a number, 1 to 3"]
    assert talk.type("/again")[0] == written
    assert talk.text == samples[2].text
    talk.type("/undo")
    assert talk.text == samples[0].text


def test_a_text_beyond_the_positions(generator: Generator) -> None:
    """The limit is said; with a sliding window the text goes on over it."""
    talk = Talk(generator, settings(max_new_tokens=30, suppress_eos=True))
    talk.type("The fox", "/continue")
    before = talk.text
    (said,) = talk.type("/continue")[1]
    assert said.startswith("error: max_new_tokens=30: a prompt of ") or said.startswith("error: max_new_tokens 30: ")
    assert "over the 64 positions of the model" in said
    assert "overflow=slide, or overflow=truncate" in said
    assert talk.text == before
    written, _ = talk.type("/set overflow=slide", "/continue")
    assert talk.text == before + written.removesuffix("\n")
    assert len(generator.encode(talk.text)) > 64


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_a_text_and_keeps_what_there_is(generator: Generator) -> None:
    """The interrupt comes while the third piece is being written."""
    talk = Talk(generator, settings())
    talk.interrupt_after = 4
    written, said = talk.type("The fox", KeyboardInterrupt(), "/text")
    assert said == ["stopped", ""]
    kept = talk.text
    assert greedy_text(generator, "The fox").startswith(kept)
    assert len("The fox") < len(kept) < len(greedy_text(generator, "The fox"))
    assert written == f"{kept}\n{kept}\n"
    assert talk.type("/continue")[0] == greedy_text(generator, kept).removeprefix(kept) + "\n"


def test_ctrl_c_ends_a_session_that_reads_from_a_pipe(generator: Generator) -> None:
    talk = Talk(generator, settings(), at_terminal=False)
    talk.interrupt_after = 4
    with pytest.raises(KeyboardInterrupt):
        talk.type("The fox", "The owl")


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_are_changed_shown_and_used(generator: Generator) -> None:
    written, said = transcript(
        generator, settings(), "/set decoding=top_p top-p=0.5 seed=3", "The fox", "/set seed=none", "/show"
    )
    wanted = settings(decoding="top_p", top_p=0.5, seed=3)
    assert written == generator.generate("The fox", wanted)[0].text + "\n"
    assert said[:3] == [
        "decoding=top_p temperature=0.7 top_p=0.5 seed=3 max_new_tokens=8",
        "(seed 3)",
        "decoding=top_p temperature=0.7 top_p=0.5 max_new_tokens=8, a new seed for each text",
    ]
    assert said[3] == f"tiny on cpu, fp32, {said[2]}"
    assert said[4].endswith("tokens; the model sees 64")


def test_short_ways_to_settings(generator: Generator) -> None:
    talk = Talk(generator, settings())
    assert talk.type("/decoding beam")[1] == ["decoding=beam num_beams=5 max_new_tokens=8"]
    assert talk.type("/decoding beem")[1] == ["error: decoding beem is unknown: did you mean beam?"]
    assert any(line.startswith("  * beam ") for line in talk.type("/decoding")[1])
    assert talk.type("/seed 9")[1] == ["decoding=beam num_beams=5 max_new_tokens=8"]
    assert talk.session.options.seed == 9
    assert talk.type("/decoding sample")[1] == ["decoding=sample temperature=0.7 seed=9 max_new_tokens=8"]
    assert talk.type("/seed")[1] == ["decoding=sample temperature=0.7 max_new_tokens=8, a new seed for each text"]
    assert talk.type("/seed x")[1] == ["error: seed x is no value for it: expected a whole number"]


@pytest.mark.parametrize(
    ("line", "strings"),
    [
        ("/stop THE END", ("THE END",)),
        ("/stop don't", ("don't",)),
        ('/stop "THE END" "."', ("THE END", ".")),
        ("/stop \\n", ("\n",)),
        ("/stop off", ()),
        ("/stop", ()),
        ("/set stop=a stop='b c'", ("a", "b c")),
    ],
)
def test_stop_strings(generator: Generator, line: str, strings: tuple[str, ...]) -> None:
    talk = Talk(generator, settings(stop=("x",)))
    talk.type(line)
    assert talk.session.options.stop == strings


@pytest.mark.parametrize("line", [r"The\nfox\t", r"//The\nfox\t", r"/new The\nfox\t", r"/continue The\nfox\t"])
def test_line_breaks_are_typed_as_in_flags(generator: Generator, line: str) -> None:
    talk = Talk(generator, settings())
    said = talk.type(line)[1]
    assert talk.session.text.turns[0].typed == "/" * line.startswith("//") + "The\nfox\t"
    said += talk.type(r"A\\nB")[1]
    assert talk.session.text.turns[0].typed == r"A\nB"
    assert sum("is read as a line break" in words for words in said) == 1


def test_a_session_is_saved_through_a_device_and_a_link(generator: Generator, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("story.jsonl")
    talk = Talk(generator, settings())
    talk.type("The fox", f"/save {os.devnull}", f"/save {link}")
    assert link.is_symlink()
    assert "The fox" in (tmp_path / "story.jsonl").read_text(encoding="utf-8")


def test_what_is_shown_can_be_typed_again(generator: Generator) -> None:
    talk = Talk(generator, drawing(stop=("THE END", "\n", 'say "no"'), bias=("dragon=+2",), suppress_eos=True, seed=4))
    (line,) = talk.type("/set decoding=top_k top_k=9")[1]
    fresh = Talk(generator, settings(max_new_tokens=99))
    fresh.type(f"/set {line}")
    assert fresh.session.options == talk.session.options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/shw", "error: no command /shw; did you mean /show?"),
        ("/retyr", "error: no command /retyr; did you mean /retry?"),
        ("/temperature 0.5", "error: no command /temperature; settings are changed with /set temperature=..."),
        ("/top-p=0.5", "error: no command /top-p=0.5; settings are changed with /set top_p=..."),
        ("/xyzzy", "error: no command /xyzzy; /help lists them"),
        ("/set temprature=1", "error: no setting temprature; did you mean temperature?"),
        ("/set xyzzy=1", "error: no setting xyzzy; /set lists them"),
        ("/set temperature", "error: temperature is no setting: write name=value, such as temperature=0.8"),
        ("/set temperature=hot", "error: temperature hot is no value for it: expected a number"),
        ("/set temperature=-1", "error: temperature -1.0 is out of range: it must be at least 0 and at most 1000000"),
        ("/set top_k=2.5", "error: top_k 2.5 is no value for it: expected a whole number"),
        ("/set num_sequences=4", "error: num_sequences 4 asked for, but greedy gives 1 text: "
         "ask for 1, or choose a strategy that draws, such as decoding=top_p with a temperature above 0"),
        ("/set max_length=9 max_new_tokens=9", "error: max_new_tokens 9 and max_length=9 contradict each other: "
         "give one of the two"),
        ("/set temperature=off", "error: temperature off is no value for it: expected a number"),
        ("/set suppress_eos=maybe", "error: suppress_eos maybe is no value for it: expected on or off"),
        ("/set decoding=off", "error: decoding off is unknown: choose from greedy, beam, diverse_beam, sample, top_k, "
         "top_p, beam_sample, contrastive"),
        ('/set decoding="', 'error: decoding=" cannot be read: No closing quotation'),
        ("/retry", "error: greedy writes the same text every time: choose /decoding top_p, say, to draw"),
        ("/again", "error: there is no text yet: type its beginning"),
        ("/text", "error: there is no text yet: type its beginning"),
        ("/why", "error: there is no text yet: type its beginning"),
        ("/undo", "error: there is nothing to take back"),
        ("/pick 1", "error: there is one text only: /set num_sequences=3 writes several"),
        ("/compare", "error: there is no prompt yet: write /compare and the beginning of a text"),
        ("/edit", "error: /edit needs a terminal in which a line can be edited"),
        ("/candidates none", "error: none is not how many tokens: write a number, 1 or more"),
        ("/save", "error: a file name is missing: write /save story.jsonl"),
        ("/load", "error: a file name is missing: write /load story.jsonl"),
        ("/load nowhere.jsonl", "error: nowhere.jsonl cannot be read: No such file or directory"),
        ("/save no/where.jsonl", "error: no/where.jsonl cannot be written: give a file in a directory that exists"),
        ("/model no/where", "error: model no/where is no directory here and not in the local cache, and "),
        ("/help me", "error: no command /me; did you mean /"),
        ("\udce9", "error: prompt is not UTF-8"),
    ],
)  # fmt: skip
def test_mistakes_are_said_and_the_session_goes_on(generator: Generator, line: str, message: str) -> None:
    talk = Talk(generator, settings())
    written, said = talk.type(line, "The fox")
    assert len(said) == 1
    assert said[0] == message or (said[0].startswith(message) and message[-1] in " /")
    assert written == greedy_text(generator, "The fox") + "\n"
    assert talk.session.refused == 1


def test_a_setting_without_use_is_said(generator: Generator) -> None:
    assert transcript(generator, settings(), "/set top_p=0.5")[1] == [
        "top_p is not used: decoding greedy has no use for it", "decoding=greedy max_new_tokens=8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "check"),
    [
        ("decoding=beam", lambda o: o.strategy.beams and o.num_sequences == 2),
        ("decoding=greedy", lambda o: o.num_sequences == 1),
        ("max_length=30", lambda o: (o.max_length, o.max_new_tokens) == (30, None)),
        ("max-new-tokens=5", lambda o: (o.max_length, o.max_new_tokens) == (None, 5)),
        ("--max_new_tokens=5", lambda o: (o.max_length, o.max_new_tokens) == (None, 5)),
        ("top_k=off", lambda o: o.top_k is None),
        ("replay=7/0/1 num_sequences=1", lambda o: (o.replay, o.seed) == ("7/0/1", None)),
    ],
)
def test_settings_that_pull_others_along(words: str, check: Callable[[DecodingOptions], bool]) -> None:
    before = decoding_options({"decoding": "top_p", "num_sequences": 2, "max_new_tokens": 20, "top_k": 4, "seed": 3})
    options, _ = changed(before, words)
    assert check(options)


def test_a_seed_and_a_replay_take_each_others_place(generator: Generator) -> None:
    talk = Talk(generator, drawing(replay="7/0/2"))
    talk.type("/set seed=3")
    assert (talk.session.options.seed, talk.session.options.replay) == (3, None)
    talk.type("/set replay=7/0/1")
    assert (talk.session.options.seed, talk.session.options.replay) == (None, "7/0/1")
    talk.type("/seed 4")
    assert (talk.session.options.seed, talk.session.options.replay) == (4, None)


def test_a_refused_setting_leaves_the_others() -> None:
    before = settings()
    with pytest.raises(UserError):
        changed(before, "max_new_tokens=5 temperature=-1")
    assert before == settings()


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_help_names_every_command_and_fits(generator: Generator, width: int) -> None:
    talk = Talk(generator, settings())
    talk.session.front = replace(talk.session.front, width=lambda: width)
    lines = talk.type("/help")[1]
    assert max(map(len, lines)) <= max(width, 30)
    for command in ("/continue", "/retry", "/edit", "/why", "/compare", "/model", "/save", "/load", "/quit"):
        assert any(line.lstrip().startswith(command) for line in lines)


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_set_alone_lists_each_setting_with_its_meaning_and_fits(generator: Generator, width: int) -> None:
    talk = Talk(generator, settings())
    talk.session.front = replace(talk.session.front, width=lambda: width)
    lines = talk.type("/set")[1]
    assert max(map(len, lines)) <= max(width, 30)
    assert not any("--" in line for line in lines)
    found: dict[str, str] = {}
    for line in lines:
        if line[2] != " ":
            name, *meaning = line.split(maxsplit=1)
            found[name] = "".join(meaning)
        else:
            found[name] += line
    for name, meaning in found.items():  # lines end where there is room, also at a hyphen
        assert "".join(meaning.split()) == "".join(without_dashes(FIELDS[name].metadata["help"]).split())
    assert list(found) == list(FIELDS)


def test_help_on_one_thing(generator: Generator) -> None:
    talk = Talk(generator, settings())
    assert talk.type("/help undo")[1] == ["/undo: take back the last change to the text"]
    assert talk.type("/help /undo")[1] == talk.type("/help undo")[1]
    assert talk.type("/help top_k")[1] == [
        "top_k=off: keep the N most probable tokens\ndefault: 50 with decoding=top_k, 4 with contrastive, else off"
    ]
    assert talk.type("/help top_p")[1][0].startswith("top_p=off: keep the most probable tokens that together")
    assert talk.type("/help contrastive")[1] == [
        "contrastive: the probable token that least resembles what the text already holds"
    ]


# --- looking inside -----------------------------------------------------------------------------------------------


def test_candidates_at_the_end_of_the_text(generator: Generator) -> None:
    talk = Talk(generator, settings())
    talk.type("The fox")
    assert talk.type("/candidates 4")[0] == candidate_table(next_token(generator, talk.text, 4)) + "\n"
    talk.type("/new")
    assert talk.type("/candidates")[0] == candidate_table(next_token(generator, "", 10)) + "\n"


def test_why(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3))
    talk.type("The fox")
    turn = talk.session.text.turns[0]
    tokens = inspect_ids(generator, generator.encode("The fox"), turn.ids, 3)
    written, _ = talk.type("/why")
    text, legend, heading, *rows = [line for line in written.splitlines() if line]
    assert text.replace("[", "").replace("]", "") == turn.written.rstrip("\n")
    assert text.count("[") == sum(token.probability < 0.01 for token in tokens) > 0
    assert "below 1%" in legend
    mean = sum(token.logprob for token in tokens) / len(tokens)
    assert heading == f"{len(tokens)} tokens, mean log-probability {mean:.2f}, the least likely ones:"
    least = sorted(tokens, key=lambda token: token.probability)[:5]
    for row, token in zip(rows, least, strict=True):
        assert row.startswith(f"  {json.dumps(token.text, ensure_ascii=False)} ")
        assert f", rank {token.rank}; likely were " in row
        assert json.dumps(token.alternatives[0].text, ensure_ascii=False) in row
    assert talk.type("/why all")[0].startswith(talk.text[:1].replace("T", "[T") or "The")


def unusual_tokens(generator: Generator, text: str) -> tuple[int, ...]:
    """Tokens of the text, one to a byte where the vocabulary has them: not how the tokenizer divides it."""
    ids = tuple(token for letter in text for token in generator.tokenizer.encode(letter))
    assert generator.tokenizer.decode(list(ids)) == text
    assert list(ids) != generator.tokenizer.encode(text)
    return ids


def test_why_is_about_the_tokens_that_were_written(generator: Generator, tmp_path: Path) -> None:
    """A model may write a text in other tokens than the tokenizer divides it into; a saved session knows them too."""
    ids = unusual_tokens(generator, " the fox")
    talk, file = Talk(generator, settings()), tmp_path / "session.jsonl"
    talk.session.text.change((Turn("Once", " the fox", ids=ids),))
    assert f"{len(ids)} tokens, mean" in talk.type("/why")[0]
    talk.type(f"/save {file}", "/new", f"/load {file}")
    assert f"{len(ids)} tokens, mean" in talk.type("/why")[0]


def test_why_of_a_text_that_was_cut_at_a_stop_string(generator: Generator) -> None:
    ids = unusual_tokens(generator, " the fox ran")
    talk = Talk(generator, settings())
    talk.session.text.change((Turn("Once", " the fox", ids=ids),))
    assert f"{len(ids) - 4} tokens, mean" in talk.type("/why")[0]


def test_why_reads_a_text_anew_whose_tokens_are_not_known(generator: Generator) -> None:
    """As those of another model are not."""
    talk, anew = Talk(generator, settings()), len(generator.tokenizer.encode(" the fox"))
    for ids in ((), (5, 6, 7), (10**9,)):
        talk.session.text.change((Turn("Once", " the fox", ids=ids),))
        assert f"{anew} tokens, mean" in talk.type("/why")[0]


def test_the_tokens_that_were_written_are_kept(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3))
    talk.type("The fox")
    sample = generator.generate("The fox", drawing(seed=3))[0]
    assert talk.session.text.turns[0].ids == sample.ids
    talk.type("/set num_sequences=2", "The fox", "/pick 2")
    assert talk.session.text.turns[0].ids == talk.session.beside[1].ids


def test_the_colours_of_why(generator: Generator) -> None:
    """Taken away, the text is left; each token that is not likely has a ground and letters of its own."""
    style = Style(has_colours=True)
    assert style.heat(" sure", 0.9) == " sure"
    assert style.heat(" maybe", 0.1) == " \x1b[30;42mmaybe\x1b[0m"
    assert style.heat(" odd", 0.02) == " \x1b[30;43modd\x1b[0m"
    assert style.heat(" never", 0.001) == " \x1b[97;41mnever\x1b[0m"
    assert style.heat("\n", 0.001) == "\x1b[97;41m\\n\x1b[0m\n"
    assert style.heat("  ", 0.001) == "\x1b[97;41m  \x1b[0m"
    talk = Talk(generator, drawing(seed=3), style=style)
    written, _ = talk.type("The fox")
    assert written.startswith("\x1b[1mThe fox\x1b[0m")
    assert "\x1b[97;41m" in talk.type("/why")[0]
    assert talk.type("/shw")[1][0].startswith("\x1b[31merror:\x1b[0m no command")


def test_compare_takes_the_last_prompt_or_another(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3))
    talk.type("The fox", "/continue and")
    before = talk.text
    prompt = talk.session.text.before_last + " and"
    written, _ = talk.type("/compare")
    assert written.count(prompt) > 3
    assert talk.type("/compare The owl")[0].count("The owl") == written.count(prompt)
    assert talk.text == before


def test_compare_with_chosen_strategies(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3, num_sequences=4))
    written, said = talk.type("/compare strategies=greedy,sample:temperature=0.5 The owl")
    headings = [line.split(":")[0] for line in written.splitlines() if line.startswith("===")]
    assert headings == ["=== greedy", "=== sample temperature=0.5"]
    assert written.count("The owl") == 1 + 4
    assert said == ["seed 3"]
    assert talk.type("/compare strategies=gredy The owl")[1] == [
        "error: strategies gredy is unknown: did you mean greedy?"
    ]


def test_compare_takes_what_the_flags_of_compare_do(generator: Generator, tmp_path: Path) -> None:
    """A reference, the training text, several texts, settings that all share, and both kinds of files."""
    text, table, page = tmp_path / "my fables.txt", tmp_path / "x.json", tmp_path / "report.html"
    text.write_text("\n".join(FABLES * 4), encoding="utf-8")
    talk = Talk(generator, drawing(seed=3))
    written, said = talk.type(
        f'/compare strategies=greedy,sample num-sequences=2 max_new_tokens=6 reference="{text}" examples=file '
        f'num_prompts=3 train_file="{text}" output={table} report={page}'
    )
    found = json.loads(table.read_text(encoding="utf-8"))
    assert len(found["prompts"]) == 3
    assert all(prompt in "\n".join(FABLES * 4) for prompt in found["prompts"])
    assert [entry["name"] for entry in found["strategies"]] == ["greedy", "sample"]
    assert [len(entry["texts"]) for entry in found["strategies"]] == [3, 6]
    assert all(text["completion_tokens"] <= 6 for entry in found["strategies"] for text in entry["texts"])
    assert all("copied" in text for entry in found["strategies"] for text in entry["texts"])
    assert found["human"]["distance"] is not None
    assert "human text" in written
    assert "copied most" in written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert said == [
        "seed 3", "greedy: 3 texts", "sample: 6 texts", f"the comparison is in {table}", f"the comparison is in {page}",
    ]  # fmt: skip
    again = f"/compare strategies=greedy output={table} The owl"
    assert talk.type(again)[1] == [
        f"error: output {table} is there already: choose another, or replace it with overwrite=on"
    ]
    assert talk.type(again.replace("The owl", "overwrite=on The owl"))[1][-1] == f"the comparison is in {table}"
    assert json.loads(table.read_text(encoding="utf-8"))["prompts"] == ["The owl"]
    assert talk.session.options == drawing(seed=3)
    assert talk.text == ""


def test_compare_with_prompts_of_a_file(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The fox\nThe owl\n", encoding="utf-8")
    written, _ = Talk(generator, drawing(seed=3)).type(f"/compare strategies=greedy prompts_file={file}")
    assert [line[:7] for line in written.splitlines() if line.startswith("The ")] == ["The fox", "The owl"]
    written, said = Talk(generator, drawing(seed=3)).type(f"/compare strategies=greedy prompts_file={file} The cat")
    assert said[0] == "prompt is not used: the prompts come from prompts_file"
    assert "The cat" not in written


def test_a_prompt_to_compare_may_look_like_a_setting(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3))
    assert talk.type('/compare strategies=greedy prompt="x=1 and"')[0].count("x=1 and") == 1
    assert talk.type("/compare strategies=greedy y is x=1")[0].count("y is x=1") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("refrence=a.txt", "refrence is nothing that /compare takes; did you mean reference?"),
        ("num_sequence=3", "num_sequence is nothing that /compare takes; did you mean num_sequences?"),
        ("decoding=beam", "decoding is nothing that /compare takes; strategies=greedy,top_p chooses what is compared"),
        ("zzz=3 x", 'zzz is nothing that /compare takes; /help compare lists what it does. A prompt: prompt="zzz=..."'),
        ("strategies=beem", "strategies beem is unknown: did you mean beam?"),
        ("num_sequences=0 The", "num_sequences 0 is out of range: it must be at least 1"),
        ("num_prompts=few", "num_prompts few is no value for it: expected a whole number"),
        ("examples=lines The", "examples lines is unknown: did you mean line?"),
        ("reference=nowhere.txt", "reference nowhere.txt cannot be read: No such file or directory"),
        ("prompts_file=nowhere.txt", "prompts_file nowhere.txt cannot be read: No such file or directory"),
        ("output=x.txt The", "output x.txt is of an unknown kind: give a name that ends in .json or .csv or .md"),
        ("report=no/where.html The", "report no/where.html cannot be written: give a file in a directory that exists"),
        ('reference="a.txt', 'reference="a.txt cannot be read: No closing quotation'),
        ("overwrite=maybe", "overwrite maybe is no value for it: expected on or off"),
    ],
)
def test_what_compare_refuses_in_one_line(generator: Generator, words: str, message: str) -> None:
    """And the session goes on."""
    written, said = transcript(generator, settings(), f"/compare {words}", "The fox")
    assert said == [f"error: {message}"]
    assert written == greedy_text(generator, "The fox") + "\n"


def test_help_for_compare_lists_its_options(generator: Generator) -> None:
    talk = Talk(generator, settings())
    said = talk.type("/help compare")[1]
    assert {line.split("=")[0].strip() for line in said if "= " in line} >= {
        "strategies", "reference", "train_file", "report", "output", "overwrite", "prompts_file"
    }  # fmt: skip
    assert not any("--" in line for line in said)
    assert talk.type("/help train_file")[1][0].startswith("train_file, with /compare: the text that the model learned")


def test_a_compared_text_gives_the_terminal_no_orders(generator: Generator) -> None:
    talk = Talk(generator, drawing(seed=3), style=Style(hides_orders=True))
    assert "\x1b" not in talk.type("/compare strategies=greedy \x1b[2J")[0]


# --- another model, and files -------------------------------------------------------------------------------------


def test_another_model_goes_on_with_the_text(generator: Generator, model_dir: Path) -> None:
    talk = Talk(generator, settings())
    talk.type("The fox")
    before = talk.text
    assert talk.type(f"/model {model_dir}")[1][0].startswith(f"{model_dir} on cpu, fp32, decoding=greedy")
    assert talk.session.generator is not generator
    assert talk.type("/continue")[0] == greedy_text(generator, before).removeprefix(before) + "\n"


def test_a_saved_session_is_the_same_in_another_process(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "my story.jsonl"
    talk = Talk(generator, drawing(stop=("zz",), seed=11))
    talk.type("The fox", "/retry", "/continue and 猫", "/set temperature=0.8")
    assert talk.type(f"/save {file}")[1] == [f"saved 2 turns to {file}"]
    other = Talk(generator, settings())
    assert other.type(f'/load "{file}"')[0] == talk.text + "\n"
    assert other.session.options == talk.session.options
    assert other.session.text.turns == talk.session.text.turns
    # The last turn was drawn at another temperature, so first the settings it was written with.
    assert other.type("/set temperature=1", "/again")[0].removesuffix("\n") == talk.text.removeprefix(
        talk.session.text.before_last
    )
    assert other.text == talk.text
    for turn, before in zip(talk.session.text.turns, ("", talk.session.text.before_last), strict=True):
        assert turn.options is not None
        assert generator.generate(before + turn.typed, turn.options)[0].completion == turn.written
    assert other.type("/undo", "/undo", "/text")[1][-1] == "error: there is no text yet: type its beginning"


def test_files_are_not_written_over_unasked(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "story.jsonl"
    file.write_text("mine")
    talk = Talk(generator, settings())
    assert "is there already: choose another, or write /save" in talk.type("The fox", f"/save {file}")[1][0]
    assert file.read_text() == "mine"
    assert talk.type(f"/save {file} overwrite", "/continue", f"/save {file}")[1] == [
        f"saved 1 turn to {file}", f"saved 2 turns to {file}",
    ]  # fmt: skip
    assert "cannot be written" in talk.type(f"/save {tmp_path}")[1][0]
    assert [path.name for path in tmp_path.iterdir()] == ["story.jsonl"]


def test_a_text_gives_the_terminal_no_orders(generator: Generator, tmp_path: Path) -> None:
    """The model may write them, and the file of a stranger hold them. What is no terminal gets the text as it is."""
    text = "The \x1b]0;mine\x07fox\x9b2J\tand\n"
    file = tmp_path / "story.jsonl"
    talk = Talk(generator, settings())
    talk.session.text.change((Turn(text, text),))
    talk.type(f"/save {file}")
    screen = Talk(generator, settings(), style=Style(hides_orders=True))
    for line in ("/text", "/why all", "/candidates", "/continue", "/retry", "/undo", "/set num_sequences=1"):
        written, said = screen.type(f"/load {file}", line)
        assert not set(map(chr, (*range(9), *range(11, 32), *range(127, 160)))) & set(written + "".join(said))
    assert screen.type(f"/load {file}")[0] == "The \ufffd]0;mine\ufffdfox\ufffd2J\tand\n" * 2 + "\n"
    assert talk.type(f"/load {file}")[0] == text * 2 + "\n"


def saved(generator: Generator, tmp_path: Path) -> tuple[Path, list[str]]:
    file = tmp_path / "story.jsonl"
    Talk(generator, drawing(seed=1)).type("The fox", "/continue", f"/save {file}")
    return file, file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: lines[:2], "was cut: it should have 2 turns and has 1"),
        (lambda lines: [*lines[:2], lines[2][:40]], "line 3 is not valid JSON"),
        (lambda lines: [], "is no session"),
        (lambda lines: lines[1:], "is no session"),
        (lambda lines: ["[]"], "line 1 is not a JSON object"),
        (lambda lines: [lines[0].replace('session": 1', 'session": 2'), *lines[1:]], "of form 2, and this version"),
        (lambda lines: [lines[0], lines[1].replace('"typed": "', '"typed": 3, "x": "'), lines[2]],
         'line 2 has no "typed" that is a text'),
        (lambda lines: [lines[0], lines[1].replace('"temperature": 1.0', '"temperature": -1.0'), lines[2]],
         "line 2: temperature -1.0 is out of range"),
        (lambda lines: [lines[0].replace('"temperature": 1.0', '"temperature": "hot"'), *lines[1:]],
         'line 1: temperature is "hot", expected a number'),
        (lambda lines: [lines[0].replace('"brought": []', '"brought": ["heat"]'), *lines[1:]],
         'line 1 has "brought" that are no settings'),
        (lambda lines: [lines[0].replace('"brought": []', '"brought": 3'), *lines[1:]],
         'line 1 has "brought" that are no settings'),
        (lambda lines: [lines[0], lines[1].replace('"choice": 0', '"choice": -1'), lines[2]], "line 2 is no turn"),
        (lambda lines: [lines[0], lines[1].replace('"ids": [', '"ids": [-1, '), lines[2]],
         'line 2 has "ids" that are no tokens'),
    ],
)  # fmt: skip
def test_spoilt_files_are_refused_and_nothing_changes(
    generator: Generator, tmp_path: Path, spoil: Callable[[list[str]], list[str]], message: str
) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("".join(f"{line}\n" for line in spoil(lines)), encoding="utf-8")
    talk = Talk(generator, settings())
    talk.type("The owl")
    before, options = talk.text, talk.session.options
    (said,) = talk.type(f"/load {file}")[1]
    assert message in said
    assert (talk.text, talk.session.options) == (before, options)


def test_a_session_of_another_model_says_so(generator: Generator, tmp_path: Path) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("\n".join([lines[0].replace('"model": "tiny"', '"model": "huge"'), *lines[1:]]) + "\n")
    said = Talk(generator, settings()).type(f"/load {file}")[1]
    assert said[1] == "It was written by huge; the model here is tiny. /model changes it."


def test_a_session_that_says_nothing_of_what_was_brought_is_read(generator: Generator, tmp_path: Path) -> None:
    file, lines = saved(generator, tmp_path)
    file.write_text("\n".join([lines[0].replace(', "brought": []', ""), *lines[1:]]) + "\n")
    assert "brought" not in file.read_text()
    assert Talk(generator, settings()).type(f"/load {file}")[1][0].startswith("loaded 2 turns")


# --- completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/re", {"/retry"}),
        ("/se", {"/set ", "/seed "}),
        ("/set temp", {"temperature="}),
        ("/set top_k=4 max_n", {"max_new_tokens="}),
        ("/set overflow=", {"overflow=error", "overflow=truncate", "overflow=slide"}),
        ("/decoding be", {"beam", "beam_sample"}),
        ("/help und", {"undo"}),
        ("/model gpt2-t", {"gpt2-tiny"}),
        ("/compare ref", {"reference="}),
        ("/compare temperature=1 examples=p", {"examples=paragraph"}),
        ("/compare strategies=greedy,top_p:temperature=1,gr", {"strategies=greedy,top_p:temperature=1,greedy"}),
        ("The", set()),
        ("//se", set()),
        ("/nothing x", set()),
    ],
)
def test_completions(line: str, found: set[str]) -> None:
    assert set(completions(line)[1]) == found


def test_a_space_at_the_end_is_told_of_once_a_session(generator: Generator) -> None:
    talk = Talk(generator, settings())
    _, said = talk.type("The owl", "The owl ", "A fox ")
    assert [line for line in said if "ends in a space" in line] == [said[0]]
    assert said[0].startswith("the prompt ends in a space: ")


def test_sentences_alone_are_written_when_they_are_wanted(generator: Generator) -> None:
    """What is on the screen is what is kept; a text without any is kept whole, and said to be."""
    written, said = Talk(generator, settings(ban_words=(".", "!", "?"))).type("The owl")
    talk = Talk(generator, settings(ban_words=(".", "!", "?"), end_at_sentence=True))
    assert talk.type("The owl") == (written, [*said, "(no sentence is complete: the text stays as it is)"])
    assert talk.text == written.rstrip("\n")
