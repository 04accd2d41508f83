"""`/v1/completions`: texts against those of the generator, and the answers as OpenAI's client reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from serving_client import Client, serving
from transformers import GPT2LMHeadModel

from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options

PROMPT = "The owl sold"


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture(scope="module")
def client(generator: Generator) -> Iterator[Client]:
    with serving(generator) as found:
        yield found


def expected(generator: Generator, prompt: str, **options: Any) -> list[str]:
    """The completions that the command line gives with these options."""
    found = decoding_options({"max_new_tokens": 16, "num_sequences": 1, **options})
    return [sample.completion for sample in generator.generate(prompt, found)]


def texts(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"seed": 3}, {"seed": 3}),
        ({"seed": 3, "n": 3, "max_tokens": 9}, {"seed": 3, "num_sequences": 3, "max_new_tokens": 9}),
        ({"seed": 3, "n": 2, "best_of": 4}, {"seed": 3, "num_sequences": 2, "best_of": 4}),
        ({"temperature": 0, "stop": "e"}, {"decoding": "greedy", "stop": ("e",)}),
        ({"seed": 1, "top_p": 1, "temperature": 1.3, "stop": ["a", "o"]},
         {"seed": 1, "decoding": "sample", "temperature": 1.3, "stop": ("a", "o")}),
        ({"seed": 5, "decoding": "top_k", "top_k": 7, "min_p": 0.01, "typical_p": 0.9, "no_repeat_ngram": 2},
         {"seed": 5, "decoding": "top_k", "top_k": 7, "min_p": 0.01, "typical_p": 0.9, "no_repeat_ngram": 2}),
        ({"seed": 2, "presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
         {"seed": 2, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2}),
        ({"decoding": "beam", "num_beams": 3, "n": 2}, {"decoding": "beam", "num_beams": 3, "num_sequences": 2}),
        ({"decoding": "contrastive"}, {"decoding": "contrastive"}),
        ({"seed": 4, "overflow": "slide", "max_tokens": 80},
         {"seed": 4, "overflow": "slide", "max_new_tokens": 80}),
        ({"replay": "7/2/1"}, {"replay": "7/2/1"}),
    ],
)  # fmt: skip
def test_texts_equal_those_of_the_command_line(
    client: Client, generator: Generator, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    assert texts(client.complete(prompt=PROMPT, **fields)) == expected(generator, PROMPT, **options)


def test_prompts_may_be_several_texts_or_token_ids(client: Client, generator: Generator) -> None:
    prompts = [PROMPT, "", "é—猫"]
    found = texts(client.complete(prompt=prompts, temperature=0))
    assert found == [*(expected(generator, prompt, decoding="greedy")[0] for prompt in prompts)]
    ids = [generator.encode(prompt) for prompt in prompts]
    assert texts(client.complete(prompt=ids, temperature=0)) == found
    assert texts(client.complete(prompt=ids[0], temperature=0)) == found[:1]


def test_stream_joined_is_the_whole_text(client: Client, generator: Generator) -> None:
    async def talk(http: httpx2.AsyncClient, openai_client: openai.AsyncOpenAI) -> None:
        stream = await openai_client.completions.create(
            model="tiny", prompt=PROMPT, seed=3, n=2, max_tokens=30, stream=True, echo=True, logprobs=1,
            stream_options={"include_usage": True}, extra_body={"suppress_eos": True},
        )  # fmt: skip
        events = [event async for event in stream]
        *pieces, last = events
        assert last.usage
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(generator.encode(PROMPT)), 60)
        joined = ["".join(event.choices[0].text for event in pieces if event.choices[0].index == n) for n in (0, 1)]
        options = {"seed": 3, "num_sequences": 2, "max_new_tokens": 30, "suppress_eos": True}
        assert joined == [PROMPT + text for text in expected(generator, PROMPT, **options)]
        assert [event.choices[0].finish_reason for event in pieces].count("length") == 2
        assert len(pieces) > 2
        tokens = [
            token for event in pieces if event.choices[0].index == 1 for token in event.choices[0].logprobs.tokens
        ]
        assert PROMPT + "".join(tokens) == joined[1]

    client.run(talk)


def test_logprobs_equal_those_of_transformers(client: Client, generator: Generator, reference: GPT2LMHeadModel) -> None:
    """As evaluation programs ask for them: those of the prompt, and nothing generated."""
    found = client.complete(prompt=PROMPT, max_tokens=0, echo=True, logprobs=2).json()["choices"][0]
    ids = torch.tensor([generator.encode(PROMPT)])
    with torch.inference_mode():
        logprobs = reference(ids).logits[0, :-1].log_softmax(dim=1)
    own = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert found["text"] == PROMPT == "".join(found["logprobs"]["tokens"])
    assert found["logprobs"]["token_logprobs"] == [None, *(pytest.approx(value, abs=1e-4) for value in own)]
    best = logprobs.topk(2).values.tolist()
    alternatives = [sorted(named.values(), reverse=True) for named in found["logprobs"]["top_logprobs"][1:]]
    assert alternatives == [pytest.approx(values, abs=1e-4) for values in best]


def test_logprobs_of_generated_tokens_equal_a_second_reading(client: Client) -> None:
    """Whichever way the text was generated, its own tokens score as when it comes back as a prompt."""
    for more in ({"temperature": 0}, {"decoding": "beam", "num_beams": 2}):
        found = client.complete(prompt=PROMPT, max_tokens=6, echo=True, logprobs=0, **more).json()["choices"][0]
        again = client.complete(prompt=found["text"], max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
        assert found["logprobs"]["text_offset"] == sorted(found["logprobs"]["text_offset"])
        if found["logprobs"]["tokens"] == again["logprobs"]["tokens"]:  # else the text has shorter ways to be spelt
            expected = again["logprobs"]["token_logprobs"][1:]
            assert found["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)


def test_logit_bias_bans_and_forces_tokens(client: Client, generator: Generator) -> None:
    greedy = client.complete(prompt=PROMPT, temperature=0, max_tokens=1, logprobs=0).json()["choices"][0]
    token = generator.tokenizer.raw.token_to_id("z")
    forced = client.complete(prompt=PROMPT, temperature=0, max_tokens=3, logit_bias={str(token): 100})
    assert texts(forced) == ["zzz"]
    (first,) = generator.generate(PROMPT, decoding_options({"decoding": "greedy", "max_new_tokens": 1}))[0].ids
    banned = client.complete(prompt=PROMPT, temperature=0, max_tokens=1, logit_bias={first: -100})
    assert texts(banned) != [greedy["text"]]


def test_defaults_of_the_server_hold_where_a_request_says_nothing(generator: Generator) -> None:
    with serving(generator, defaults={"decoding": "greedy", "max_new_tokens": 5}) as client:
        assert texts(client.complete(prompt=PROMPT)) == expected(generator, PROMPT, decoding="greedy", max_new_tokens=5)
        assert texts(client.complete(prompt=PROMPT, decoding="sample", seed=1, max_length=12)) == expected(
            generator, PROMPT, decoding="sample", seed=1, max_length=12, max_new_tokens=None
        )


def test_seed_and_unused_fields_are_named_in_the_answer(client: Client, generator: Generator) -> None:
    answer = client.complete(prompt=PROMPT).json()
    assert texts(client.complete(prompt=PROMPT, seed=answer["seed"])) == [answer["choices"][0]["text"]]
    answer = client.complete(prompt=PROMPT, decoding="greedy", top_k=3).json()
    assert "seed" not in answer
    assert answer["warnings"] == ["top_k is not used: decoding greedy does not use it"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "max_tokens"),
        ({"max_tokens": 3, "min_new_tokens": 4}, "min_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tempreature": 1}, "tempreature"),
        ({"top_p": [1]}, "top_p"),
        ({"stop": [1]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[0], []]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a " * 100}, "max_tokens"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logprobs": 6}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "best_of": 2}, "best_of"),
        ({"stream_options": {}}, "stream_options"),
        ({"suffix": "x"}, "suffix"),
        ({"stop": [f"a{number}" for number in range(65)]}, "stop"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 65}, "n"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"decoding": "beams"}, "decoding"),
        ({"model": "gpt-5"}, "model"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(client: Client, fields: dict[str, Any], param: str) -> None:
    answer = client.complete(**fields)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param in error["message"]
    assert "--" not in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"n": 1, "n": 2}', b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"n": 1e999}']
)
def test_malformed_json_is_refused(client: Client, body: bytes) -> None:
    answer = client.request("POST", "/v1/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_texts_are_the_same_whoever_else_is_served(client: Client, generator: Generator) -> None:
    """Requests of all kinds at once, some of which go away, against each of them alone."""
    kinds: list[dict[str, Any]] = [
        {"prompt": PROMPT, "seed": 1},
        {"prompt": PROMPT + " silence by the ounce", "seed": 2, "repetition_penalty": 1.3},
        {"prompt": "", "temperature": 0, "max_tokens": 40},
        {"prompt": ["A fox", "Two bells"], "n": 3, "seed": 3, "min_p": 0.05, "logprobs": 2},
        {"prompt": "Nobody", "decoding": "beam", "num_beams": 4},
        {"prompt": PROMPT, "seed": 4, "overflow": "slide", "max_tokens": 70},
    ]

    def stable(answer: httpx2.Response) -> list[Any]:
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    alone = [stable(client.complete(**fields)) for fields in kinds]

    async def talk(http: httpx2.AsyncClient, _: openai.AsyncOpenAI) -> None:
        async def send(number: int) -> None:
            await asyncio.sleep(number % 7 / 500)
            if number % 5 == 4:
                fields = {**kinds[number % len(kinds)], "logprobs": None, "stream": True}
                asking = asyncio.ensure_future(http.post("/v1/completions", json=fields))
                await asyncio.sleep(0.01)
                asking.cancel()
                return
            answer = await http.post("/v1/completions", json=kinds[number % len(kinds)])
            assert stable(answer) == alone[number % len(kinds)]

        await asyncio.gather(*map(send, range(42)))

    client.run(talk)


def test_logprobs_with_a_stop_string_have_all_tokens_before_it(client: Client) -> None:
    """Each token is the one of the text without stop strings, up to where the text was cut."""
    fields = {"prompt": PROMPT, "seed": 3, "max_tokens": 12, "logprobs": 2, "suppress_eos": True}
    free = client.complete(**fields).json()["choices"][0]
    stops = {"never": "\u2603\u2603", "cut": free["text"][-3:]}
    for stop in stops.values():
        cut = client.complete(**fields, stop=stop).json()["choices"][0]
        count = len(cut["logprobs"]["tokens"])
        assert count >= sum(offset < len(cut["text"]) for offset in free["logprobs"]["text_offset"]) > 1
        for name, column in free["logprobs"].items():
            assert cut["logprobs"][name] == column[:count]
