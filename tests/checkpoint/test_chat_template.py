"""Chat templates: the same text as transformers, the answers in it, and a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from gpt2tg.checkpoint.chat_template import PLAIN, ChatTemplate, TemplateRefusal, chat_template_of
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.training.model.new_tokenizer import transformers_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "What does the owl sell?"},
    {"role": "assistant", "content": "Silence,\nby the ounce."},
    {"role": "user", "content": " And the fox? "},
    {"role": "assistant", "content": "Stars."},
]

CHATML = (
    "{% for message in messages %}\n"
    "    {% set name = message['role'] %}\n"
    "{{ '<|im_start|>' + name + '\n' + message['content'] | trim + '<|im_end|>\n' }}\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}[INST] {{ m.content | tojson }} [/INST]{% endif %}{% endfor %}"
)
# Loops with a condition and a break, namespaces, macros, and globals of transformers.
FANCY = (
    "{% macro line(m) %}{{ m['role'] | upper }}: {{ m['content'] }}{% endmacro %}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }} {{ line(m) }}\n{% endfor %}"
    "{{ dict(a=1) | tojson }}{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}"
    "{% if add_generation_prompt %}{{ ns.n + 1 }} ASSISTANT:{% endif %}"
)


def template(source: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate(source, "the template", tuple({"eos_token": "<|endoftext|>", **tokens}.items()))


def answers(found: ChatTemplate) -> list[str]:
    return [text for text, is_learned in found.pieces(MESSAGES) if is_learned]


@pytest.mark.parametrize("source", [PLAIN, CHATML, MARKED, FANCY], ids=["plain", "chatml", "marked", "fancy"])
@pytest.mark.parametrize("is_prompt", [False, True])
def test_text_is_that_of_transformers(tokenizer: TextTokenizer, source: str, is_prompt: bool) -> None:
    theirs = transformers_tokenizer(tokenizer, 64, source)
    messages = MESSAGES[:-1] if is_prompt else MESSAGES
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt)
    tokens = dict.fromkeys(("bos_token", "unk_token"), "<|endoftext|>")
    assert template(source, **tokens).render(messages, add_generation_prompt=is_prompt) == expected


def test_marked_answers_are_those_of_transformers(tokenizer: TextTokenizer) -> None:
    """Its mask of the assistant's tokens, decoded; the last end-of-text token is added in training."""
    theirs = transformers_tokenizer(tokenizer, 64, MARKED)
    found = theirs.apply_chat_template(MESSAGES, return_assistant_tokens_mask=True, return_dict=True)
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    masked = tokenizer.raw.decode([token for token, is_answer in pairs if is_answer], skip_special_tokens=False)
    assert "".join(answers(template(MARKED, bos_token="<|endoftext|>"))) + "<|endoftext|>" == masked


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PLAIN, [" Silence,\nby the ounce.<|endoftext|>", " Stars."]),
        (CHATML, ["Silence,\nby the ounce.<|im_end|>\n", "Stars.<|im_end|>\n"]),
    ],
)
def test_answers_begin_after_their_prompts(source: str, expected: list[str]) -> None:
    assert answers(template(source)) == expected
    *others, last = template(source).pieces(MESSAGES)
    text = "".join(text for text, _ in [*others, last])
    assert template(source).render(MESSAGES).removesuffix("\n").removesuffix("<|endoftext|>") == text.removesuffix("\n")
    assert all(a[1] != b[1] for a, b in zip(others, [*others[1:], last], strict=True))


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = "{% for m in messages %}{{ loop.length }} {{ m.content }}{% endfor %}"
    with pytest.raises(TemplateRefusal, match=r"enclose answers in {% generation %}"):
        template(rewriting).pieces(MESSAGES)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "underscore"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'owl' * 99 }}{% endfor %}{% endfor %}",
            "without end",
        ),
        ("{{ 'x' * 10 ** 12 }}", "repeats"),
        ("{{ 9 ** 999 }}", "exponent"),
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ raise_exception('no owls') }}", "no owls"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_unsafe_and_broken_templates_are_refused(source: str, reason: str) -> None:
    with pytest.raises(TemplateRefusal, match=reason):
        template(source).render(MESSAGES)


@pytest.mark.parametrize(("source", "end"), [(PLAIN, "<|endoftext|>"), (CHATML, "<|im_end|>"), ("{{ 1 }}", None)])
def test_end_of_an_answer_is_found(source: str, end: str | None) -> None:
    assert template(source).answer_end() == end


def test_end_of_an_answer_without_a_mark_is_the_next_question() -> None:
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert template(bare).answer_end() == "\nuser:"


@pytest.mark.parametrize("several", [False, True])
def test_template_is_found_where_transformers_keeps_it(checkpoint: Path, tmp_path: Path, several: bool) -> None:
    loaded = load_tokenizer(checkpoint, 300)
    assert chat_template_of(checkpoint, "owl", loaded) is None
    theirs = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    theirs.chat_template = {"default": CHATML, "tool_use": "{{ 1 }}"} if several else CHATML
    theirs.save_pretrained(checkpoint, save_jinja_files=not several)  # several: in tokenizer_config.json
    found = chat_template_of(checkpoint, "owl", loaded)
    assert found is not None
    assert found.source == CHATML
    assert found.name == "the chat template of owl"


def test_prefix_of_the_tokenizer_is_not_doubled(tokenizer: TextTokenizer) -> None:
    """Transformers encodes the text of a template without further special tokens."""
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    found = ChatTemplate("{{ '<s>' }}" + PLAIN, "x", (("eos_token", "<|endoftext|>"),), prefix="<s>")
    assert not found.prompt(MESSAGES[:2]).startswith("<s>")
    assert not found.pieces(MESSAGES)[0][0].startswith("<s>")
    assert found.render(MESSAGES).startswith("<s>")
