"""The outcome of tuning in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpt2tg.comparison.results import Comparison
from gpt2tg.options import DecodingOptions
from gpt2tg.tuning.held_out import CheckedSettings, HeldOutCheck
from gpt2tg.tuning.summary import summary, verdict

CHECK = HeldOutCheck(
    default=CheckedSettings("default", DecodingOptions(), (6.2, 6.6)),
    tuned=CheckedSettings("tuned", DecodingOptions(temperature=1.5, min_p=0.02), (1.2, 1.6)),
    gain=5.0,
    interval=(4.3, 5.4),
    human_distance=0.89,
    comparison=Comparison(("The fox", "The owl", "The cat"), 1, ()),
)


def test_verdict_tells_a_clear_gain() -> None:
    clear = replace(CHECK, gain=1.5, interval=(0.9, 2.0))
    assert verdict(clear) == (
        "The tuned settings are closer to human text than the default ones by 1.50 (95 % interval 0.90 to 2.00), "
        "on 3 held-out prompts and 2 new seeds."
    )
    assert verdict(replace(clear, interval=(-0.1, 2.0))).startswith("No clear gain")
    same = replace(clear, interval=(0.0, 0.0), tuned=replace(clear.tuned, options=clear.default.options))
    assert verdict(same) == "No gain: of all settings that were tried, the default ones are closest to human text."


@pytest.mark.parametrize(
    ("gain", "interval", "words"),
    [
        (0.5, (-0.1, 0.9), "No clear gain: the tuned settings are closer to human text than the default ones by 0.50 "
         "(95 % interval -0.10 to 0.90), .* which may be chance"),
        (-0.3, (-0.8, 0.1), "No gain: the tuned settings are farther from human text than the default ones by 0.30 "
         "(95 % interval -0.10 to 0.80), .* which may be chance"),
        (0.0, (-0.4, 0.0), "No gain: the tuned settings are farther from human text than the default ones by 0.00 "
         "(95 % interval 0.00 to 0.40), .* which may be chance"),
        (-0.5, (-0.8, -0.2), "A loss: the tuned settings are farther from human text than the default ones by 0.50 "
         "(95 % interval 0.20 to 0.80), .* Keep the default ones"),
    ],
)  # fmt: skip
def test_verdict_tells_gain_loss_and_chance(gain: float, interval: tuple[float, float], words: str) -> None:
    check = replace(CHECK, gain=gain, interval=interval)
    beginning, rest = words.split(" .* ")
    assert verdict(check).startswith(beginning)
    assert rest in verdict(check)
    assert ("chance" in verdict(check)) == ("chance" in rest)


def test_summary_has_both_settings() -> None:
    header, default, tuned, human, *_ = summary(CHECK).splitlines()
    assert header.split()[:3] == ["temperature", "top_p", "top_k"]
    assert default.split()[:6] == ["default", "0.7", "0.9", "off", "off", "off"]
    assert tuned.split()[1] == "1.5"
    assert human.split()[-1] == "0.89"
