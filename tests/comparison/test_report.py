"""The report: its content, and its behaviour in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from chromium import headless_chromium, set_screen
from conftest import FABLES

import text_generation_demo
from gpt2tg.comparison.reference import prepare_human_text
from gpt2tg.comparison.report import report_page
from gpt2tg.comparison.results import compare_strategies
from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tokens import inspect_sample
from gpt2tg.options import DecodingOptions

EVIL = "<script>document.title = 'broken'</script> & \"fox"


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture(scope="module")
def html(generator: Generator) -> str:
    """A page with human text, three strategies, and a prompt that must be escaped."""
    options = DecodingOptions(seed=3, max_new_tokens=12, num_sequences=2)
    human = prepare_human_text(generator, ["\n".join(FABLES)], options, prompts=(), num_prompts=1)
    strategies = parse_strategies(options, "greedy,beam,sample:temperature=1.5", print)
    return report_page(
        generator, compare_strategies(generator, [EVIL, *human.prompts], strategies, human), "my <b>model"
    )


class Outline(HTMLParser):
    """The elements of a page, the addresses they refer to, and their texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1] if self.tags else "", []).append(data)


def test_page_loads_nothing(html: str) -> None:
    outline = Outline(html)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_text_is_escaped(html: str) -> None:
    outline = Outline(html)
    assert outline.tags.count("script") == 2  # the token details, and the code of the page
    assert EVIL in outline.texts["blockquote"]
    assert outline.texts["h1"][0] == "How my <b>model writes"


def test_token_details_equal_the_inspection(generator: Generator, html: str) -> None:
    details = json.loads(re.search(r'id="details">(.*?)</script>', html, re.S)[1])
    assert html.count('data-n="') == len(details)
    (sample,) = generator.generate(EVIL, DecodingOptions(decoding="greedy", max_new_tokens=12))
    inspected = [token for token in inspect_sample(generator, sample, 5) if token.text]
    for (text, probability, rank, entropy, others), token in zip(details, inspected, strict=False):
        assert (text, rank) == (token.text, token.rank)
        assert probability == pytest.approx(token.probability, rel=0.01)
        assert entropy == pytest.approx(token.entropy, abs=0.01)
        assert [other for other, _ in others] == [other.text for other in token.alternatives]


def test_plots_take_their_colours_from_the_page(html: str) -> None:
    plots = re.findall(r'<svg class="plot (\w+)" role="img" aria-label="([^"]+)"', html)
    assert [size for size, _ in plots] == ["wide", "narrow"] * 2
    assert "Probability of each token along the text: beam, sample temperature=1.5, human text" in plots[2][1]
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_report_flag(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    command = ["--model_path", str(model_dir), "--compare", "--max_new_tokens", "8", "--prompt", "The fox"]
    assert text_generation_demo.main([*command, "--strategies", "greedy,top_p", "--report", str(path)]) == 0
    assert "</html>" in path.read_text(encoding="utf-8")
    assert "The fox" not in capsys.readouterr().out


# --- in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any, html: str, tmp_path: Path) -> Any:
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    set_screen(browser, 1280, "light")
    browser.get(path.as_uri())
    return browser


def tokens(browser: Any) -> list[Any]:
    return browser.find_elements("css selector", ".tokens span")


def test_page_opens_and_no_script_of_a_prompt_runs(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert opened.title.startswith("How ")
    assert opened.find_element("css selector", "blockquote").text == EVIL


def test_hover_shows_the_alternatives_of_a_token(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    detail = opened.find_element("id", "detail")
    assert not detail.is_displayed()
    token = tokens(opened)[3]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    ActionChains(opened).move_to_element(token).perform()
    assert detail.is_displayed()
    assert "rank" in detail.text
    assert len(detail.find_elements("css selector", "li")) == 5
    assert detail.find_element("css selector", "b").text.strip() == token.text.strip()
    ActionChains(opened).move_to_element(opened.find_element("tag name", "blockquote")).perform()
    assert not detail.is_displayed()


def test_arrow_keys_move_between_tokens(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    first = tokens(opened)[0]
    opened.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    detail = opened.find_element("id", "detail")
    assert detail.is_displayed()
    assert opened.switch_to.active_element == tokens(opened)[1]
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not detail.is_displayed()


def test_phone_shows_details_on_tap_and_fits_the_screen(opened: Any) -> None:
    set_screen(opened, 390, "light")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", tokens(opened)[5])
    tokens(opened)[5].click()
    box = opened.find_element("id", "detail").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert opened.execute_script("return document.documentElement.scrollWidth") == 390
    shown = [p.get_attribute("class") for p in opened.find_elements("css selector", ".plot") if p.is_displayed()]
    assert set(shown) == {"plot narrow"}


def test_table_fits_a_wide_screen_and_scrolls_on_a_phone(opened: Any) -> None:
    wider = "const box = document.querySelector('[aria-label=Metrics]'); return box.scrollWidth - box.clientWidth"
    assert opened.execute_script(wider) == 0
    set_screen(opened, 390, "light")
    assert opened.execute_script(wider) > 100
    shade = "return getComputedStyle(document.querySelector('[aria-label=Metrics]')).backgroundAttachment"
    assert opened.execute_script(shade) == "local, scroll"


def test_page_is_dark_in_dark_mode(opened: Any) -> None:
    def lightness(what: str) -> int:
        colour = opened.execute_script(f"return getComputedStyle(document.body).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert lightness("backgroundColor") > 600 > lightness("color")
    set_screen(opened, 1280, "dark")
    assert lightness("backgroundColor") < 150 < 500 < lightness("color")
