"""Strategies compared on the same prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import FABLES

from gpt2tg.comparison.reference import prepare_human_text
from gpt2tg.comparison.results import compare_strategies
from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions

SHORT = DecodingOptions(seed=3, max_new_tokens=10, num_sequences=2)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_texts_equal_those_generated_alone(generator: Generator) -> None:
    strategies = parse_strategies(SHORT, "greedy,top_p:temperature=0.9,beam", print)
    found = compare_strategies(generator, ["The fox", "The owl"], strategies, batch_size=3)
    for result in found.results:
        for index, prompt in enumerate(found.prompts):
            request = generator.fit(prompt, result.options, index)
            (alone,) = generator.generate_batch([request], result.options)
            assert [s.text for s in result.samples if s.prompt_index == index] == [s.text for s in alone]


def test_prompts_come_from_the_reference_with_human_text(generator: Generator) -> None:
    human = prepare_human_text(generator, ["\n".join(FABLES)], SHORT, prompts=(), num_prompts=3)
    assert len(human.prompts) == 3
    assert [sample.prompt for sample in human.samples[:3]] == list(human.prompts)
    assert len(human.samples) > 3
    assert human.new_tokens == 10
    found = compare_strategies(generator, human.prompts, parse_strategies(SHORT, "greedy,sample", print), human)
    assert found.human is not None
    assert found.human.metrics.tokens_per_second is None
    assert all(result.distance is not None and result.distance > found.human.distance for result in found.results)


def test_copies_from_the_training_text_are_counted(generator: Generator) -> None:
    strategies = parse_strategies(SHORT, "greedy,top_p", print)
    written = [s.completion for r in compare_strategies(generator, ["The fox"], strategies).results for s in r.samples]
    found = compare_strategies(generator, ["The fox"], strategies, training=f"x {written[2]} y").results
    assert found[1].texts[1].copied == len(written[2].split())
    assert found[1].metrics.copied_most == len(written[2].split())
