"""The page to write on, in a browser, with a real server and the bundled model."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from chromium import headless_chromium, set_screen

pytest.importorskip("starlette", reason="the server's packages are not installed")

ROOT = Path(__file__).parents[2]
OPENING = "The lamp in the harbour went out, and the fishermen"
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\"> & so on"
Result = TypeVar("Result")


class Server:
    """The script with --web, as a user starts it."""

    def __init__(self, python: Path, folder: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._command = [
            str(python), str(ROOT / "text_generation_demo.py"), "--model_name", "gpt2-tiny", "--web", "--no_browser",
            "--port", str(self.port), "--texts_file", str(folder / "texts.db"), "--max_new_tokens", "24", "--seed", "5",
            *flags,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self.ask("/health"), 60)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to a request, or None if there is none."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self.address + path, data, headers)
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None


def until(found: Callable[[], Result], seconds: float = 30) -> Result:
    """Return what `found` returns once it is true."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.03)
    return result


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser, self.server = browser, server

    def open(self, text: str = "", **settings: Any) -> Page:
        """Open a new text."""
        made = self.server.ask("/api/texts", {"text": text, "settings": settings})
        self.text = made["id"]
        self.browser.get(self.server.address + "/static/icon.svg")  # the page itself would choose another text
        self.run("localStorage.clear(); sessionStorage.clear(); localStorage['gpt2tg.text'] = arguments[0]", self.text)
        self._show()
        return self

    def reload(self) -> Page:
        self.browser.get("about:blank")
        self._show()
        return self

    def _show(self) -> None:
        self.browser.get(self.server.address + "/#/write")
        until(lambda: self.run("return document.body.classList.contains('ready')"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def part(self, name: str) -> Any:
        """Return an element by its id."""
        return self.browser.find_element("id", name)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    @property
    def words(self) -> str:
        """What stands on the paper."""
        return str(self.part("paper").get_property("value"))

    def type(self, *keys: str) -> None:
        self.part("paper").send_keys(*keys)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def put_caret(self, offset: int) -> None:
        script = (
            "const p = document.getElementById('paper'); p.focus(); p.setSelectionRange(arguments[0], arguments[0])"
        )
        self.run(script, offset)

    def choose(self, name: str, value: str) -> None:
        """Choose in a list."""
        script = "const list = document.getElementById(arguments[0]); list.value = arguments[1];"
        self.run(f"{script} list.dispatchEvent(new Event('change'))", name, value)

    def wait_saved(self) -> None:
        until(lambda: self.part("saved").text == "Saved")

    def wait_written(self, before: str) -> str:
        """Wait until the model has ended and return what it wrote after `before`."""
        # The words first: before the click was handled, the button has the same name as after the end.
        until(lambda: self.words != before and self.part("continue").text == "Continue")
        self.wait_saved()
        assert self.words.startswith(before)
        return self.words[len(before) :]

    def press_continue(self) -> str:
        before = self.words
        self.part("continue").click()
        return self.wait_written(before)

    def tree(self) -> dict[str, Any]:
        """Return the text as the server has it."""
        return dict(self.server.ask(f"/api/texts/{self.text}"))

    def rows(self) -> list[tuple[str, int]]:
        """Return kind and level of each row of the outline."""
        rows = self.run(
            "return [...document.querySelectorAll('[role=treeitem]')].map(r => [r.classList[0], Number(r.ariaLevel)])"
        )
        return [(kind, level) for kind, level in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(browser: Any, forked_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(forked_python, tmp_path_factory.mktemp("desk"))
    yield started
    started.stop()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    set_screen(browser, 1280, "light")
    browser.get_log("browser")
    yield Page(browser, server)
    messages = [entry["message"] for entry in browser.get_log("browser")]
    # Servers that are away on purpose, and the icon that a browser wants for a picture.
    assert [line for line in messages if "net::ERR_" not in line and "/favicon.ico" not in line] == []


def control() -> Any:
    from selenium.webdriver.common.keys import Keys

    return Keys


def test_a_reload_keeps_what_was_typed_and_generated(page: Page) -> None:
    page.open()
    page.type(OPENING)
    assert page.press_continue()
    written = page.words
    assert page.reload().words == written
    assert [node["kind"] for node in page.tree()["nodes"]] == ["typed", "generated"]
    assert page.rows() == [("typed", 1), ("generated", 1)]


def test_page_writes_what_the_command_line_writes(page: Page, server: Server) -> None:
    page.open(OPENING)
    written = page.press_continue()
    prompt = {"prompt": OPENING, "max_tokens": 24, "seed": 5}
    assert written == server.ask("/v1/completions", prompt)["choices"][0]["text"]


def test_a_space_typed_at_the_end_is_left_to_the_model(page: Page, server: Server) -> None:
    page.open()
    page.type(f"{OPENING} ")
    page.wait_saved()
    page.part("continue").click()
    written = page.wait_written(OPENING)
    assert (
        written == server.ask("/v1/completions", {"prompt": OPENING, "max_tokens": 24, "seed": 5})["choices"][0]["text"]
    )
    assert [node["text"] for node in page.tree()["nodes"]] == [OPENING, written]
    assert page.part("notice").text == ""
    page.type(control().CONTROL, "z")
    until(lambda: page.words == f"{OPENING} ")


def test_saving_does_not_take_growing_words_for_typed_ones(page: Page) -> None:
    """The pause after the last key ends while the model writes, and the paper is behind what arrived."""
    page.open(max_new_tokens=450)
    page.run("window.requestAnimationFrame = action => setTimeout(action, 400)")
    page.type(OPENING)
    written = page.press_continue()
    assert [(node["kind"], node["text"]) for node in page.tree()["nodes"]] == [
        ("typed", OPENING),
        ("generated", written),
    ]


def test_stop_keeps_what_was_written(page: Page) -> None:
    page.open(OPENING, max_new_tokens=450)
    page.part("continue").click()
    until(lambda: len(page.words) > len(OPENING) + 20)
    page.type(control().ESCAPE)
    kept = page.wait_written(OPENING)
    node = page.tree()["nodes"][-1]
    assert (node["text"], node["finish_reason"]) == (kept, "interrupted")
    assert page.reload().words == OPENING + kept


def test_typing_stops_the_model_and_keeps_both(page: Page) -> None:
    page.open(OPENING, max_new_tokens=450)
    page.part("continue").click()
    until(lambda: len(page.words) > len(OPENING) + 20)
    page.type(" STOP")
    until(lambda: page.part("continue").text == "Continue")
    page.wait_saved()
    assert page.words.endswith(" STOP")
    assert page.reload().words.endswith(" STOP")


def test_an_edit_in_the_middle_is_a_branch(page: Page) -> None:
    page.open(OPENING)
    first = OPENING + page.press_continue()
    page.put_caret(len(OPENING) + 5)
    page.type(control().BACKSPACE, "zebra")
    page.wait_saved()
    edited = page.words
    assert edited == first[: len(OPENING) + 4] + "zebra" + first[len(OPENING) + 5 :]
    typed = page.tree()["nodes"][-1]
    assert (typed["kind"], typed["at"]) == ("typed", 4)
    page.all("[role=treeitem]")[1].click()
    until(lambda: page.words == first)


def test_undo_and_redo_reach_what_anyone_wrote(page: Page) -> None:
    page.open(OPENING)
    written = OPENING + page.press_continue()
    page.type(" They")
    page.wait_saved()
    for keys, expected in [("z", written), ("z", OPENING), ("y", written), ("y", f"{written} They")]:
        page.type(control().CONTROL, keys)
        until(lambda expected=expected: page.words == expected)
    page.wait_saved()
    assert len(page.tree()["nodes"]) == 3  # nothing was written twice
    page.reload()
    page.part("undo").click()
    until(lambda: page.words == written)


def test_retry_is_a_branch_with_another_seed(page: Page) -> None:
    page.open(OPENING, temperature=1.5)
    first = page.press_continue()
    page.part("retry").click()
    until(lambda: page.words not in (OPENING, OPENING + first) and page.part("continue").text == "Continue")
    old, new = page.tree()["nodes"][1:]
    assert old["parent"] == new["parent"]
    assert old["settings"]["seed"] == 5 != new["settings"]["seed"]
    assert page.rows() == [("typed", 1), ("generated", 2), ("generated", 1)]


def test_retry_after_a_cut_goes_on_from_the_cut(page: Page) -> None:
    keys = control()
    page.open(OPENING)
    page.press_continue()
    page.put_caret(len(OPENING) + 12)
    page.type(keys.CONTROL, keys.SHIFT, keys.END)
    page.type(keys.BACKSPACE)
    page.wait_saved()
    before = page.words
    assert len(before) == len(OPENING) + 12
    first = page.press_continue()
    page.part("retry").click()
    until(lambda: page.words not in (before, before + first) and page.part("continue").text == "Continue")
    assert page.words.startswith(before)


def test_an_alternative_token_is_a_branch_that_goes_on(page: Page) -> None:
    page.open(OPENING)
    first = OPENING + page.press_continue()
    tokens = page.tree()["nodes"][1]["tokens"]
    page.choose("view", "odds")
    start = len(OPENING) + len(tokens[0]["text"] + tokens[1]["text"])
    page.put_caret(start + 1)
    page.type(control().ALT, control().ARROW_DOWN)
    shown = [button.text.split("\n")[0] for button in page.all("#alternatives li button")]
    assert shown == [other["text"].strip().replace("\n", "↵") for other in tokens[2]["alternatives"]][: len(shown)]
    taken = next(other for other in tokens[2]["alternatives"] if other["text"] != tokens[2]["text"])
    page.press(control().ENTER)
    before = first[:start] + taken["text"]
    until(lambda: page.words.startswith(before) and len(page.words) > len(before))
    assert page.wait_written(before)
    assert [node["kind"] for node in page.tree()["nodes"]] == ["typed", "generated", "chosen", "generated"]
    assert page.browser.switch_to.active_element == page.part("paper")


def test_a_token_that_was_cut_has_no_probability(page: Page) -> None:
    keys = control()
    page.open(OPENING)
    page.press_continue()
    token = next(token for token in page.tree()["nodes"][1]["tokens"] if len(token["text"]) > 3)
    page.choose("view", "odds")
    cut = page.words.index(token["text"], len(OPENING)) + len(token["text"]) - 1
    page.put_caret(cut)
    until(lambda: token["text"].strip() in page.part("readout").get_property("textContent"))
    page.type(keys.CONTROL, keys.SHIFT, keys.END)
    page.type(keys.BACKSPACE)
    page.wait_saved()
    page.put_caret(cut - 1)
    page.put_caret(cut)
    page.run("return new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))")
    assert page.part("readout").get_property("textContent") == ""
    page.type(keys.ALT, keys.ARROW_DOWN)
    until(lambda: page.part("notice").text.startswith("Other words are known where the model wrote"))


def test_candidates_are_offered_and_one_is_taken(page: Page) -> None:
    page.open(OPENING, temperature=1.2)
    page.choose("count", "3")
    page.part("continue").click()
    until(lambda: len(page.all("#candidates article")) == 3 and page.part("continue").text == "Continue")
    texts = [node["text"] for node in page.tree()["nodes"][1:]]
    assert page.words == OPENING
    assert len(set(texts)) == 3
    page.press("2")
    until(lambda: page.words == OPENING + texts[1])
    assert not page.part("candidates").is_displayed()


def test_words_typed_without_a_server_are_kept_and_sent(page: Page, server: Server) -> None:
    page.open(OPENING)
    server.kill()
    page.type(" waited.")
    until(lambda: page.part("saved").text == "Kept in this browser")
    page.browser.get("about:blank")
    server.start()
    assert page.reload().words == f"{OPENING} waited."
    page.wait_saved()
    assert f"{OPENING} waited." in [node["text"] for node in page.tree()["nodes"]]


def test_a_browser_that_keeps_nothing_is_enough(page: Page) -> None:
    page.open(OPENING)
    page.type(" and")
    page.wait_saved()  # the newest text is the one that opens
    forbid = """
      for (const name of ['localStorage', 'sessionStorage'])
        Object.defineProperty(window, name, {get() { throw new DOMException('forbidden', 'SecurityError'); }});
    """
    added = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    try:
        page.reload()
        page.type(" women")
        page.choose("view", "odds")
        written = page.press_continue()
        assert page.words == f"{OPENING} and women{written}"
        page.part("show-texts").click()
        until(lambda: page.part("texts").is_displayed())
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        page.browser.get("about:blank")


def test_a_crash_while_the_model_writes_loses_no_word(page: Page, server: Server) -> None:
    page.open(OPENING, max_new_tokens=450)
    page.part("continue").click()
    until(lambda: len(page.words) > len(OPENING) + 20)
    server.kill()
    until(lambda: page.part("saved").text == "Kept in this browser")
    seen = page.words
    server.start()
    page.wait_saved()
    assert page.words == seen
    assert page.reload().words == seen


def test_a_tab_follows_another_one_and_never_overwrites_it(page: Page, server: Server) -> None:
    page.open(OPENING)
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    page.reload()
    page.type(" again")
    page.wait_saved()
    page.browser.close()
    page.browser.switch_to.window(first)
    until(lambda: page.words == f"{OPENING} again")
    root = page.tree()["nodes"][0]
    edit = {"node": root["id"], "version": root["version"], "text": f"{OPENING} again and again"}
    assert server.ask(f"/api/texts/{page.text}/edit", edit)  # another browser
    page.type(control().BACKSPACE)
    page.wait_saved()
    assert page.words == f"{OPENING} agai"
    assert page.tree()["nodes"][0]["text"] == edit["text"]
    until(lambda: len(page.rows()) == 2)


def test_markup_in_a_text_is_text(page: Page) -> None:
    page.open(EVIL)
    page.part("title").send_keys(EVIL, control().ENTER)
    page.choose("view", "who")
    page.press_continue()
    page.part("show-texts").click()
    until(lambda: EVIL in page.part("texts").text.replace("\n", " "))
    assert page.words.startswith(EVIL)
    assert page.all("#write img, #write script") == []
    assert page.browser.title != "broken"


def test_right_to_left_text_keeps_its_direction(page: Page) -> None:
    page.open("كان يا ما كان في قديم الزمان\nand a line in English")
    where = """
      const letters = document.querySelector('#copy > span > span').firstChild, range = document.createRange();
      const page = document.getElementById('copy').getBoundingClientRect();
      const box = offset => {
        range.setStart(letters, offset);
        range.setEnd(letters, offset + 1);
        return range.getBoundingClientRect();
      };
      return [page.right - box(0).right, box(0).left - box(5).left, box(29).left - page.left];
    """
    from_the_right, leftwards, from_the_left = page.run(where)
    assert from_the_right < 3 < leftwards
    assert from_the_left < 3
    assert page.run("return getComputedStyle(document.getElementById('paper')).unicodeBidi") == "plaintext"


def test_shading_lies_exactly_under_the_words(page: Page) -> None:
    page.open(OPENING)
    page.press_continue()
    page.choose("view", "odds")
    box = "const a = document.getElementById(arguments[0]).getBoundingClientRect(); return [a.left, a.top, a.width]"
    assert page.run(box, "paper") == page.run(box, "copy")
    copied = page.run("return document.getElementById('copy').textContent")
    assert copied == f"{page.words}\N{ZERO WIDTH SPACE}"
    type_of = """
      const style = getComputedStyle(document.getElementById(arguments[0]));
      return ['font', 'letterSpacing', 'whiteSpace', 'overflowWrap', 'padding', 'textAlign'].map(name => style[name]);
    """
    assert page.run(type_of, "paper") == page.run(type_of, "copy")
    assert len(page.all("#copy span[class^=s]")) > 5


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page) -> None:
    set_screen(page.browser, 360, "light")
    page.open(OPENING)
    page.press_continue()
    width = "return document.documentElement.scrollWidth"
    assert page.run(width) == 360
    for panel in ("texts", "branches", "settings"):
        page.part(f"show-{panel}").click()
        assert page.part(panel).rect["width"] == 360
        assert page.run(width) == 360
        page.press(control().ESCAPE)
        assert not page.part(panel).is_displayed()
    for name in ("read", "compare"):
        page.part(f"to-{name}").click()
        until(lambda name=name: page.part(name).is_displayed())
        assert page.run(width) == 360


def test_keyboard_alone_is_enough(page: Page) -> None:
    keys = control()
    page.open()
    focused = page.browser.switch_to.active_element
    assert focused == page.part("paper")
    focused.send_keys(OPENING, keys.CONTROL, keys.ENTER)
    written = page.wait_written(OPENING)
    until(lambda: page.part("retry").is_enabled())
    names = []
    for _ in range(30):
        page.press(keys.TAB)
        names.append(page.run("return document.activeElement.role ?? document.activeElement.id"))
        if names[-1] == "treeitem":
            break
    assert {"continue", "retry", "undo", "count", "view", "treeitem"} <= set(names), names
    page.press(keys.ARROW_UP)
    page.press(keys.ENTER)
    until(lambda: page.words == OPENING)
    page.press(keys.ARROW_DOWN)
    page.press(keys.ENTER)
    until(lambda: page.words == OPENING + written)


def test_screen_readers_hear_the_words_once(page: Page) -> None:
    page.open(OPENING)
    script = """
      window.heard = [];
      new MutationObserver(() => heard.push(document.getElementById('spoken').textContent))
        .observe(document.getElementById('spoken'), {childList: true, characterData: true, subtree: true});
    """
    page.run(script)
    written = page.press_continue()
    heard = page.run("return window.heard")
    assert heard[0] == "The model writes."
    assert heard[-1] == f"Written, {len(written.split())} words: {written}"
    assert len(heard) == 2


def test_a_pasted_text_is_read(page: Page, server: Server) -> None:
    page.open(OPENING)
    page.part("to-read").click()
    text = "The old king counted his geese, and the queen counted the refrigerators."
    page.part("read-text").send_keys(text)
    page.part("read-button").click()
    until(lambda: page.all("#read-result .tokens"))
    assert page.part("read-result").find_element("css selector", ".tokens").text == text
    answer = server.ask("/api/score", {"text": text, "alternatives": 5})
    assert f"Perplexity {answer['perplexity']:.0f}" in page.part("read-result").text
    assert page.all(".surprises button")[0].text == "refrigerators"
    page.all(".surprises button")[0].click()
    assert "choice" in page.part("read-detail").text


def test_strategies_are_compared_and_reported(page: Page) -> None:
    page.open(OPENING)
    page.part("to-compare").click()
    assert page.part("compare-prompt").get_property("value") == OPENING
    page.part("compare-beam").click()  # greedy and top_p stay
    page.run("document.getElementById('compare-length').value = 8; document.getElementById('compare-texts').value = 1")
    page.part("compare-button").click()
    until(lambda: page.all("#compare-result iframe"), 60)
    assert [row.text for row in page.all("#compare-result tbody th")] == ["greedy", "top_p"]
    page.browser.switch_to.frame(page.all("#compare-result iframe")[0])
    until(lambda: page.all("h1"))
    assert page.all("h1")[0].text.startswith("How ")
    page.browser.switch_to.default_content()


def test_a_branch_is_named_hidden_and_brought_back(page: Page) -> None:
    keys = control()
    page.open(OPENING)
    page.press_continue()
    page.part("name-branch").click()
    page.press("the storm", keys.ENTER)
    until(lambda: "the storm" in page.part("tree").text)
    page.part("prune").click()
    until(lambda: page.words == OPENING)
    until(lambda: len(page.rows()) == 1)
    page.all("#notice .link")[0].click()
    until(lambda: page.words != OPENING)
    assert "the storm" in page.part("tree").text


def test_settings_belong_to_the_text_and_are_used(page: Page) -> None:
    page.open(OPENING)
    page.part("show-settings").click()
    page.all(".presets button")[1].click()
    until(lambda: page.part("setting-temperature").get_property("value") == "0.5")
    page.part("setting-max_new_tokens").send_keys(control().CONTROL, "a")
    page.part("setting-max_new_tokens").send_keys("7", control().TAB)
    until(lambda: page.tree()["settings"].get("max_new_tokens") == 7)
    page.reload().press_continue()
    settings = page.tree()["nodes"][1]["settings"]
    assert (settings["temperature"], settings["top_p"], settings["max_new_tokens"]) == (0.5, 0.8, 7)
    page.part("setting-temperature").send_keys(control().CONTROL, "a")
    page.part("setting-temperature").send_keys("-1", control().TAB)
    until(lambda: page.part("notice").text.startswith("Daring: 0 or more"))
    assert page.tree()["settings"]["temperature"] == 0.5


def test_a_deleted_text_can_be_taken_back(page: Page) -> None:
    page.open(OPENING)
    page.part("show-texts").click()
    until(lambda: page.all("#text-list [aria-current]"))
    page.all("#text-list li:has([aria-current]) .close")[0].click()
    page.all("dialog .primary")[0].click()
    until(lambda: page.part("notice").text.endswith("×") and "deleted" in page.part("notice").text)
    assert page.server.ask(f"/api/texts/{page.text}") is None
    colours = "const c = getComputedStyle(arguments[0]); return [c.color, c.backgroundColor]"
    assert len({tuple(page.run(colours, part)) for part in page.all("#notice > *")}) == 1  # its buttons can be seen
    page.all("#notice .link")[0].click()
    until(lambda: page.words == OPENING)


def test_a_dropped_file_opens_and_a_folder_is_refused(page: Page) -> None:
    page.open(OPENING)
    drop = """
      const data = new DataTransfer();
      for (const [name, text] of arguments[0]) data.items.add(new File([text], name));
      if (arguments[1]) data.files[0].arrayBuffer = () => Promise.reject(new Error('a folder'));
      const [file] = data.files;
      const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
      if (arguments[1]) Object.defineProperty(event.dataTransfer, 'files', {value: [file]});
      document.body.dispatchEvent(new DragEvent('dragover', {dataTransfer: data, bubbles: true, cancelable: true}));
      const isMarked = document.body.classList.contains('dropping');
      document.body.dispatchEvent(event);
      return [isMarked, document.body.classList.contains('dropping'), event.defaultPrevented];
    """
    assert page.run(drop, [["storm.txt", "A storm came up."], ["calm.txt", "\ufeffThe sea was calm."]], False) == [
        True, False, True,
    ]  # fmt: skip
    until(lambda: page.words == "The sea was calm.")
    assert page.part("notice").text.startswith("calm.txt is open.")
    listed = [text["opening"] for text in page.server.ask("/api/texts")]
    assert listed[:3] == ["The sea was calm.", "A storm came up.", OPENING]
    page.run(drop, [["pictures", ""]], True)
    until(lambda: page.part("notice").text.startswith("Pictures cannot be read. Choose a file"))
    assert page.words == "The sea was calm."


def test_the_key_is_asked_for_and_another_model_is_loaded(browser: Any, forked_python: Path, tmp_path: Path) -> None:
    bundled = ROOT / "gpt2tg" / "bundled" / "gpt2-tiny"
    shutil.copytree(bundled, tmp_path / "models" / "second", copy_function=os.symlink)
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{}")
    flags = ("--api_key", "open sesame", "--models_folder", str(tmp_path / "models"))
    server = Server(forked_python, tmp_path, *flags)
    page = Page(browser, server)
    try:
        browser.get(server.address)
        page.run("sessionStorage.clear(); localStorage.clear()")
        browser.refresh()
        for key, title in [
            ("guess", "This server wants a key"),
            (" open sesame ", "This is not the key of the server"),
        ]:
            until(lambda title=title: [found.text for found in page.all("dialog h2")] == [title])
            page.press(key, control().ENTER)
        until(lambda: page.run("return document.body.classList.contains('ready')"))
        page.reload()  # the tab keeps the key
        assert not page.all("dialog")
        page.part("show-settings").click()
        page.choose("model", "second")
        until(lambda: page.part("spoken").get_property("textContent") == "second is loaded.")
        assert page.part("model").get_property("value") == "second"
        assert not page.all("#model option:enabled[value=broken]")
        page.type(OPENING)
        page.press_continue()
        page.part("show-branches").click()
        page.part("export").click()
        page.run("URL.createObjectURL = blob => { blob.text().then(text => (window.savedFile = text)); return '#'; }")
        page.all("dialog .choice")[2].click()
        saved = json.loads(until(lambda: page.run("return window.savedFile")))
        assert saved["nodes"][1]["settings"]["model"] == "second"
    finally:
        server.stop()
        browser.get("about:blank")
        browser.get_log("browser")


def test_a_saved_tree_opens_again_with_all_branches(page: Page, tmp_path: Path) -> None:
    page.open(OPENING)
    page.press_continue()
    page.part("retry").click()
    until(lambda: len(page.rows()) == 3 and page.part("continue").text == "Continue")
    page.run("URL.createObjectURL = blob => { blob.text().then(text => (window.savedFile = text)); return '#'; }")
    page.part("export").click()
    page.all("dialog .choice")[2].click()
    path = tmp_path / "harbour.tree.json"
    path.write_text(until(lambda: page.run("return window.savedFile")), encoding="utf-8")
    before = page.tree()
    page.part("file").send_keys(str(path))
    until(lambda: page.run("return localStorage['gpt2tg.text']") != str(page.text))
    page.text = page.run("return localStorage['gpt2tg.text']")
    after = page.tree()
    shown = [(node["kind"], node["at"], node["text"], node["settings"]) for node in before["nodes"]]
    assert [(node["kind"], node["at"], node["text"], node["settings"]) for node in after["nodes"]] == shown
    assert page.words == before["nodes"][0]["text"] + before["nodes"][2]["text"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    set_screen(page.browser, 1280, scheme)
    page.open(OPENING)
    page.press_continue()
    page.choose("view", "odds")

    page.run(source)
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}

    def check(what: str) -> None:
        script = "axe.run({exclude: ['#copy']}, {resultTypes: ['violations'], ...arguments[0]}).then(arguments[1])"
        found = page.browser.execute_async_script(script, rules)
        serious = [
            (violation["id"], [node["html"][:120] for node in violation["nodes"]])
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == [], what

    page.part("show-texts").click()
    check("the desk")
    page.put_caret(len(OPENING) + 3)
    page.type(control().ALT, control().ARROW_DOWN)
    check("other words")
    page.press(control().ESCAPE)
    page.part("show-settings").click()
    page.run("document.querySelector('#settings details').open = true")
    check("the settings")
    page.part("show-help").click()
    check("a dialog")
    page.all("dialog .primary")[0].click()
    page.choose("count", "2")
    page.part("continue").click()
    until(lambda: page.part("continue").text == "Continue" and page.all("#candidates .primary:enabled"))
    check("the candidates")
    page.part("to-read").click()
    page.part("read-text").send_keys(OPENING)
    page.part("read-button").click()
    until(lambda: page.all("#read-result .tokens"))
    check("a text that was read")
    page.part("to-compare").click()
    check("the comparison")
