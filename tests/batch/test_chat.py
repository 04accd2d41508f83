"""Questions and conversations as prompts: the text of the template goes in, the answer alone comes out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE
from jinja2 import Environment

import generate_from_finetuned
from gpt2tg.batch.jobs import plan_jobs
from gpt2tg.batch.prompts import Prompt, read_prompts
from gpt2tg.batch.writing import _jobs_of, tasks, write_job, write_jobs
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions, PromptOptions

GREEDY = DecodingOptions(decoding="greedy", max_new_tokens=8)
TALK = [
    {"role": "user", "content": "owl?"},
    {"role": "assistant", "content": "fox"},
    {"role": "user", "content": "and?"},
]


@pytest.fixture(scope="module")
def generator(chat_dir: Path) -> Generator:
    return load(str(chat_dir))


def as_text(messages: list[dict[str, str]]) -> str:
    template = Environment(trim_blocks=True).from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, eos_token="<|endoftext|>", add_generation_prompt=True)


def read(directory: Path, *rows: object) -> list[Prompt]:
    path = directory / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(PromptOptions(prompts_file=str(path)))


def test_only_the_answer_is_written(generator: Generator) -> None:
    prompts = read_prompts(PromptOptions(prompt="owl?", chat=True))
    [job] = plan_jobs(generator, prompts, GREEDY, None, print)
    expected = generator.generate(as_text(TALK[:1]), GREEDY)[0].completion
    written = io.StringIO()
    write_job(generator, job, lambda text: written.write(text) and None, print)
    assert job.request.prompt == as_text(TALK[:1])
    assert written.getvalue() == expected.lstrip() + "\n"


def test_records_hold_the_conversation_with_its_answer(
    generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = read(tmp_path, {"messages": TALK, "max_new_tokens": 5}, {"prompt": "The owl"})
    jobs = plan_jobs(generator, prompts, GREEDY, None, print)
    write_jobs(generator, jobs, PromptOptions(format="jsonl"), None, print)
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["prompt"] == as_text(TALK)
    assert one["messages"] == [*TALK, {"role": "assistant", "content": one["completion"].strip()}]
    assert one["completion_tokens"] <= 5
    assert (other["prompt"], "messages" in other) == ("The owl", False)


def test_other_processes_get_the_conversation(generator: Generator) -> None:
    jobs = plan_jobs(generator, [Prompt("", messages=tuple(TALK)), Prompt("The owl")], GREEDY, None, print)
    sent = [json.loads(json.dumps(task)) for task in tasks(jobs, 8, 1)]
    assert [job for task in sent for job in _jobs_of(task)] == jobs


def test_answers_at_the_end_are_generated_anew(tmp_path: Path) -> None:
    [prompt] = read(tmp_path, {"messages": TALK[:2]})
    assert [*prompt.messages] == TALK[:1]


def test_answer_ends_where_the_next_question_would_begin(checkpoint: Path) -> None:
    """If the template writes no token after an answer."""
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(bare)
    generator = load(str(checkpoint))
    [job] = plan_jobs(generator, [Prompt("", {"stop": ("x",)}, tuple(TALK))], GREEDY, None, print)
    assert job.options.stop == ("x", "\nuser:")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"content": "owl?"}]}, "p.jsonl, line 1: message 1 of messages has no role"),
        ({"messages": TALK[1:2]}, "p.jsonl, line 1: messages has no question"),
        ({"messages": []}, "p.jsonl, line 1: messages has no question"),
        ({"messages": TALK, "temprature": 1}, "temprature is not a decoding setting"),
    ],
)
def test_malformed_conversations_are_refused(tmp_path: Path, row: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(tmp_path, row)


def test_refused_conversation_is_named_with_its_number(generator: Generator, model_dir: Path) -> None:
    prompts = [Prompt("", messages=tuple(TALK)), Prompt("", messages=({"role": "", "content": "x"},))]
    with pytest.raises(UserError, match=r"prompts_file prompt 2: the chat template of .* refuses the messages"):
        plan_jobs(generator, prompts, GREEDY, None, print)
    with pytest.raises(UserError, match=f"^{model_dir} has no chat template"):  # which is no fault of the first prompt
        plan_jobs(load(str(model_dir)), prompts, GREEDY, None, print)


def test_model_without_a_template_is_refused(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_from_finetuned.main(["--model_path", str(model_dir), "--chat", "--prompt", "owl?"]) == 2
    assert "has no chat template: fine-tune it on conversations" in capsys.readouterr().err
