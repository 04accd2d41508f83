"""Take the pictures of docs/web.md: the page to write on in headless Chromium, with the bundled model.

    python docs/figures/desk.py

Needs selenium, Chromium and chromedriver. Texts and seeds are fixed; the pictures differ with the fonts of the machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from chromium import headless_chromium, set_screen  # noqa: E402

OPENING = "The lamp in the harbour went out, and the fishermen"
READ = "The old king counted his geese every evening. The queen counted the refrigerators, and the geese said nothing."
COLOURS = 128


@contextlib.contextmanager
def served(folder: str) -> Iterator[str]:
    """The address of the page, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--model_name", "gpt2-tiny", "--web", "--no_browser", "--texts_file", f"{folder}/texts.db"]
    process = subprocess.Popen([sys.executable, "text_generation_demo.py", *flags, "--port", str(port)], cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{address}/health"))
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    """Whether the server is up."""
    try:
        with urllib.request.urlopen(address):
            return True
    except OSError:
        return False


def until(found: Callable[[], Any]) -> Any:
    """Return what `found` returns once it is true."""
    end = time.monotonic() + 90
    while not (result := found()):
        if time.monotonic() > end:
            raise TimeoutError("the page did not get there")
        time.sleep(0.05)
    return result


class Camera:
    """A browser on the page."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, text: str, **settings: Any) -> None:
        """Open a new text."""
        body = json.dumps({"title": "The harbour", "text": text, "settings": settings}).encode()
        request = urllib.request.Request(f"{self.address}/api/texts", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            number = json.load(answer)["id"]
        self.browser.get(f"{self.address}/#/write")
        self.run("localStorage.clear(); localStorage['gpt2tg.text'] = arguments[0]", number)
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/#/write")
        until(lambda: self.run("return document.body.classList.contains('ready')"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def press(self, selector: str, number: int = 0) -> None:
        self.browser.find_elements("css selector", selector)[number].click()

    def choose(self, name: str, value: str) -> None:
        script = "const list = document.getElementById(arguments[0]); list.value = arguments[1];"
        self.run(f"{script} list.dispatchEvent(new Event('change'))", name, value)

    def write(self, selector: str = "#continue") -> None:
        """Let the model write until it ends."""
        self.press(selector)
        time.sleep(0.3)
        until(lambda: self.run("return document.getElementById('continue').textContent === 'Continue'"))
        time.sleep(0.5)

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """Give the browser another screen."""
        set_screen(self.browser, width, scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def take(self, name: str) -> None:
        """Write the picture into a file of few colours."""
        time.sleep(0.5)
        picture = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def take_all(camera: Camera) -> None:
    """Go through the page and take its pictures."""
    camera.resize(1180, 700)
    camera.open(OPENING, seed=11, max_new_tokens=60, temperature=0.8)
    camera.write()
    camera.run("crypto.getRandomValues = list => list.fill(7)")  # the seed of a retry
    camera.write("#retry")
    camera.choose("view", "odds")
    script = "const p = document.getElementById('paper'); p.focus(); p.setSelectionRange(arguments[0], arguments[0])"
    camera.resize(1180, 760)
    camera.run(script, len(OPENING) + 24)
    camera.press("#other-words")
    camera.take("desk.png")
    camera.press("#alternatives .close")
    camera.choose("count", "3")
    camera.write()
    camera.resize(1180, 760, "dark")
    camera.run("window.scrollTo(0, 0)")
    camera.take("desk-candidates.png")
    camera.resize(360, 720)
    camera.take("desk-phone.png")
    camera.resize(1100, 760)
    camera.press("#to-read")
    camera.browser.find_element("id", "read-text").send_keys(READ)
    camera.press("#read-button")
    until(lambda: camera.run("return document.querySelector('#read-result .tokens')"))
    camera.press(".surprises button")
    camera.take("desk-read.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, served(directory) as page, headless_chromium() as chromium:
        take_all(Camera(chromium, page))
