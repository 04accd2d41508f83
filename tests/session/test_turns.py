"""The text of a session: generated, continued, repeated, undone, edited."""

from __future__ import annotations

from pathlib import Path

import pytest
from talk import Talk, greedy_options, greedy_text, sampling_options, transcript

from gpt2tg.generation.generator import Generator, load


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_printed_seed_reproduces_the_text(generator: Generator) -> None:
    written, messages = transcript(generator, sampling_options(), "The fox")
    seed = int(messages[0].removeprefix("(seed ").removesuffix(")"))
    assert transcript(generator, sampling_options(seed=seed), "The fox")[0] == written
    assert transcript(generator, sampling_options(), f"/seed {seed}", "The fox")[0] == written


def test_replay_reproduces_one_of_several_texts(generator: Generator) -> None:
    third = generator.generate("The fox", sampling_options(seed=7, num_sequences=3))[2]
    written, messages = transcript(generator, sampling_options(replay="7/0/2"), "The fox")
    assert written == third.text + "\n"
    assert messages == ["(replay 7/0/2)"]


def test_finish_reason_is_printed(generator: Generator) -> None:
    text = greedy_text(generator, "The fox").removeprefix("The fox")
    written, messages = transcript(generator, greedy_options(stop=(text[3:5],)), "The fox")
    assert written == "The fox" + text[: text.index(text[3:5])] + "\n"
    assert messages == ["(ended at a stop string)"]


def test_continue_prompts_with_the_whole_text(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
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


def test_typed_words_are_joined_with_a_space(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    talk.type("The fox", "/continue , he messages")
    assert talk.session.text.turns[1].typed == ", he messages"
    talk.type("The fox", '/continue "Yes," he messages')
    assert talk.session.text.turns[1].typed == ' "Yes," he messages'
    talk.type("The fox\n", "/undo", "/undo")
    talk.session.text.change(())
    talk.type("/continue The owl")
    assert talk.text == greedy_text(generator, "The owl")


def test_model_can_begin_without_a_prompt(generator: Generator) -> None:
    written, _ = transcript(generator, greedy_options(), "/continue")
    assert written == generator.generate("", greedy_options())[0].text + "\n"
    talk = Talk(generator, greedy_options())
    talk.type("The fox", "/new")
    assert talk.text == ""
    assert talk.type("/continue")[0] == written


def test_retry_draws_again_and_again_repeats(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=7))
    first, _ = talk.type("The fox")
    second, messages = talk.type("/retry")
    assert second == generator.generate("The fox", sampling_options(seed=7, num_sequences=2))[1].text + "\n"
    assert second != first
    assert messages == ["(replay 7/0/1)"]
    assert talk.type("/again") == (second, messages)
    talk.type("/undo")
    assert talk.text + "\n" == first  # /again generated the same text, which is no change
    talk.type("/again", "/retry")
    assert talk.text + "\n" == second
    third, messages = talk.type("/retry")
    assert third not in (first, second)
    assert messages == ["(replay 7/0/2)"]
    assert talk.text + "\n" == third


def test_retry_without_seed_and_after_another_strategy(generator: Generator) -> None:
    talk = Talk(generator, sampling_options())
    _, messages = talk.type("The fox")
    seed = messages[0].removeprefix("(seed ").removesuffix(")")
    assert talk.type("/retry")[1] == [f"(replay {seed}/0/1)"]
    talk.type("/decoding greedy", "The fox")
    assert talk.type("/retry")[1] == [
        "error: greedy is deterministic: choose a strategy that samples, such as /decoding top_p"
    ]
    assert talk.type("/decoding top_p", "/retry")[1][-1].startswith("(seed ")


def test_again_uses_the_last_seed_and_current_settings(generator: Generator) -> None:
    talk = Talk(generator, sampling_options())
    _, messages = talk.type("The fox")
    seed = int(messages[0].removeprefix("(seed ").removesuffix(")"))
    written, _ = talk.type("/set temperature=0.3", "/again")
    assert written == generator.generate("The fox", sampling_options(seed=seed, temperature=0.3))[0].text + "\n"


def test_retry_keeps_earlier_turns(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=1))
    talk.type("The fox")
    before = talk.text
    talk.type("/continue and")
    written, _ = talk.type("/retry")
    assert talk.text + "\n" == before + written
    assert written.startswith(" and")
    assert len(talk.session.text.turns) == 2


def test_undo_reverts_every_change(generator: Generator) -> None:
    talk = Talk(generator, sampling_options(seed=1), edit=lambda text: text + "!")
    texts = [""]
    for line in ("The fox", "/continue", "/retry", "/edit", "/continue then", "/new", "The owl"):
        talk.type(line)
        texts.append(talk.text)
    for text in reversed(texts[:-1]):
        talk.type("/undo")
        assert talk.text == text
    assert talk.type("/undo")[1] == ["error: there is nothing to undo"]


def test_undo_shows_the_end_of_the_text(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    _, messages = talk.type("The fox", "/continue", "/undo")
    assert messages == [f"The text ends: {' '.join(greedy_text(generator, 'The fox').split())}"]
    assert talk.type("/undo")[1] == ["The text is empty."]


def test_edit_replaces_the_text(generator: Generator) -> None:
    shown: list[str] = []

    def edit(text: str) -> str:
        shown.append(text)
        return "The owl slept"

    talk = Talk(generator, greedy_options(), edit=edit)
    talk.type("The fox")
    before = talk.text
    assert talk.type("/edit") == ("", ["The text ends: The owl slept"])
    assert shown == [before]
    assert talk.text == "The owl slept"
    assert talk.type("/edit")[1] == ["The text is unchanged."]
    talk.type("/continue")
    assert talk.text == greedy_text(generator, "The owl slept")


def test_cancelled_edit_changes_nothing(generator: Generator) -> None:
    def edit(_: str) -> str:
        raise KeyboardInterrupt

    talk = Talk(generator, greedy_options(), edit=edit)
    talk.type("The fox")
    before = talk.text
    assert talk.type("/edit", "/text") == (before + "\n", ["The text is unchanged."])


def test_pick_chooses_one_of_several_texts(generator: Generator) -> None:
    options = sampling_options(seed=5, num_sequences=3)
    talk = Talk(generator, options)
    samples = generator.generate("The fox", options)
    written, messages = talk.type("The fox")
    assert written == "".join(f"{sample.text}\n\n" for sample in samples)
    assert messages[-2:] == ["The session continues with text 1; /pick chooses another.", "(seed 5)"]
    assert talk.text == samples[0].text
    talk.type("/pick 3")
    assert talk.text == samples[2].text
    assert talk.type("/pick 4")[1] == ["error: 4 is not a valid text number: write 1 to 3"]
    assert talk.type("/pick")[1] == ["error: the text number is missing: write 1 to 3"]
    assert talk.type("/again")[0] == written
    assert talk.text == samples[2].text
    talk.type("/undo")
    assert talk.text == samples[0].text


def test_text_beyond_the_context_length(generator: Generator) -> None:
    """The error names the limit; with a sliding window the text grows beyond it."""
    talk = Talk(generator, greedy_options(max_new_tokens=30, suppress_eos=True))
    talk.type("The fox", "/continue")
    before = talk.text
    (message,) = talk.type("/continue")[1]
    assert message.startswith(("error: max_new_tokens=30: a prompt of ", "error: max_new_tokens 30: "))
    assert "the context length of 64" in message
    assert "overflow=slide, or overflow=truncate" in message
    assert talk.text == before
    written, _ = talk.type("/set overflow=slide", "/continue")
    assert talk.text == before + written.removesuffix("\n")
    assert len(generator.encode(talk.text)) > 64


@pytest.mark.parametrize("line", [r"The\nfox\t", r"//The\nfox\t", r"/new The\nfox\t", r"/continue The\nfox\t"])
def test_escapes_are_read_as_in_flags(generator: Generator, line: str) -> None:
    talk = Talk(generator, greedy_options())
    messages = talk.type(line)[1]
    assert talk.session.text.turns[0].typed == "/" * line.startswith("//") + "The\nfox\t"
    messages += talk.type(r"A\\nB")[1]
    assert talk.session.text.turns[0].typed == r"A\nB"
    assert sum("is read as a line break" in words for words in messages) == 1


def test_trailing_space_gives_one_notice(generator: Generator) -> None:
    talk = Talk(generator, greedy_options())
    _, messages = talk.type("The owl", "The owl ", "A fox ")
    assert [line for line in messages if "ends in a space" in line] == [messages[0]]
    assert messages[0].startswith("the prompt ends in a space: ")


def test_end_at_sentence_without_a_sentence(generator: Generator) -> None:
    """A text without a complete sentence is kept as it is, with a notice."""
    written, messages = Talk(generator, greedy_options(ban_words=(".", "!", "?"))).type("The owl")
    talk = Talk(generator, greedy_options(ban_words=(".", "!", "?"), end_at_sentence=True))
    assert talk.type("The owl") == (written, [*messages, "(no complete sentence: the text stays as it is)"])
    assert talk.text == written.rstrip("\n")
