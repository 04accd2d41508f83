"""The session at a pseudo-terminal: keys in, screen out."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import pytest
from wcwidth import wcswidth

from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions
from gpt2tg.session.style import Style

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this platform")
import fcntl  # noqa: E402
import termios  # noqa: E402

from fork_server import OWNS_TERMINAL  # noqa: E402

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0

CTRL_C, CTRL_D, ENTER, ALT_ENTER, UP, LEFT, TAB = "\x03", "\x04", "\r", "\x1b\r", "\x1b[A", "\x1b[D", "\t"
HELLO = "Type the beginning of a text and press Enter. /help lists the commands, /quit leaves."


@pytest.fixture(scope="module", autouse=True)
def run_in_forks(forked_python: Path) -> None:
    Terminal.python = str(forked_python)


def take_over_the_terminal() -> None:
    """Make the pseudo-terminal the controlling one, and Ctrl-C work even if the tests run in the background."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A script that runs at a pseudo-terminal: in a fork, or as a process of its own if `starts_python` is set."""

    python = ""

    def __init__(
        self,
        home: Path,
        *words: str,
        term: str = "xterm-256color",
        columns: int = 100,
        starts_python: bool = False,
        **env: str,
    ) -> None:
        self._keyboard, other_end = pty.openpty()
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        own = {"TERM": term, "XDG_STATE_HOME": str(home), "PROMPT_TOOLKIT_NO_CPR": "1", **env}
        own |= {} if starts_python else {OWNS_TERMINAL: "1"}
        self._process = subprocess.Popen(
            [sys.executable if starts_python else self.python, *words],
            cwd=ROOT, env={**kept, **own}, stdin=other_end, stdout=other_end, stderr=other_end,
            preexec_fn=take_over_the_terminal if starts_python else None,
        )  # fmt: skip
        os.close(other_end)
        self.raw = ""
        self._seen = 0
        self._prompts = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._keyboard)

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait for a text, and return what the screen showed since the last call up to it."""
        end = time.monotonic() + PATIENCE
        while (place := visible(self.raw).find(text, self._seen)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come, but {visible(self.raw)[self._seen :]!r}"
            assert self._read(), f"{text!r} did not come before the end: {visible(self.raw)[self._seen :]!r}"
        found = visible(self.raw)[self._seen : place]
        self._seen = place + len(text)
        return found

    def wait_for_more(self, characters: int) -> None:
        """Wait until this many characters came on the screen since the last call of `wait_for`."""
        while len(visible(self.raw)) < self._seen + characters:
            assert self._read(), f"nothing came after {visible(self.raw)!r}"

    def type_line(self, keys: str) -> None:
        """Wait for the line editor, and type: earlier keys would reach it as if they were pasted."""
        self.wait_until_ready()
        self.type(keys)

    def wait_until_ready(self) -> None:
        self._prompts += 1
        end = time.monotonic() + PATIENCE
        while self.raw.count("\x1b[?2004h") < self._prompts:
            assert time.monotonic() < end, f"no prompt came after {visible(self.raw)!r}"
            assert self._read(), f"no prompt came after {visible(self.raw)!r}"

    def end(self) -> int:
        """Wait for the end of the script, and return its exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def _read(self) -> bool:
        if not select.select([self._keyboard], [], [], PATIENCE)[0]:
            return False
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # on Linux: the other end is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


def visible(raw: str) -> str:
    """Return a text without control sequences."""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])", "", raw).replace("\r", "")


def words(model_dir: Path, *more: str) -> list[str]:
    return ["text_generation_demo.py", "--model_path", str(model_dir), *more]


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def greedy(generator: Generator, prompt: str) -> str:
    """Return a greedy text as a terminal shows it."""
    options = DecodingOptions(decoding="greedy", max_new_tokens=8, num_sequences=1)
    return Style(hides_controls=True).safe(generator.generate(prompt, options)[0].text)


def test_session_at_a_terminal(model_dir: Path, tmp_path: Path, generator: Generator) -> None:
    """Editing, several lines, completion, history over two runs, the editor of /edit, colours, Ctrl-C and Ctrl-D."""
    flags = ["--decoding", "greedy", "--max_new_tokens", "8"]
    with Terminal(tmp_path, *words(model_dir, *flags)) as screen:
        before = screen.wait_for(HELLO)
        assert f"{model_dir} on cpu, fp32, decoding=greedy max_new_tokens=8\n" in before
        screen.type_line("The fx" + LEFT + "o" + ENTER)
        screen.wait_for(greedy(generator, "The fox") + "\n")
        screen.type_line("thrown away")
        screen.wait_for("thrown away")
        screen.type(CTRL_C)
        screen.type_line("The owl" + ALT_ENTER + "and" + ENTER)
        screen.wait_for(greedy(generator, "The owl\nand") + "\n")
        screen.type_line("/sho")
        screen.wait_for("the length of the text")
        screen.type(TAB)
        screen.wait_for("/show")
        screen.type(ENTER)
        screen.wait_for("text: 1 turn, ")
        screen.type_line("/edit" + ENTER)
        screen.type_line("\x7f" * 80 + "The bell" + ENTER)
        screen.wait_for("The text ends: The bell")
        screen.type_line("/continue" + ENTER)
        screen.wait_for(greedy(generator, "The bell").removeprefix("The bell") + "\n")
        screen.type_line("/why" + ENTER)
        screen.wait_for("the least likely ones:")
        assert "\x1b[1mThe fox\x1b[0m" in screen.raw
        assert re.search(r"\x1b\[(97;41|30;43|30;42)m[^\x1b]+\x1b\[0m", screen.raw)
        screen.type_line("/qiut" + ENTER)
        screen.wait_for("error: unknown command /qiut: did you mean /quit?")
        screen.type_line(CTRL_D)
        assert screen.end() == 0
    history = tmp_path / "gpt2tg" / "history"
    assert history.stat().st_mode & 0o077 == 0
    with Terminal(tmp_path, *words(model_dir, *flags), columns=40, NO_COLOR="1") as screen:
        screen.type_line(UP * 12 + ENTER)  # the oldest line is the first one of the other run
        screen.wait_for(greedy(generator, "The fox") + "\n")
        screen.type_line("/why" + ENTER)
        screen.wait_for("in brackets: ")
        screen.type_line("/quit" + ENTER)
        assert screen.end() == 0
        assert not re.search(r"\x1b\[(1|3\d|4\d|9\d|3\d;.*|97;.*)m", screen.raw)


def test_ctrl_c_stops_generation_and_keeps_the_text(model_dir: Path, tmp_path: Path) -> None:
    endless = ["--overflow", "slide", "--suppress_eos", "--max_new_tokens", "1000000", "--seed", "1"]
    command = ["generate_from_finetuned.py", "--model_path", str(model_dir), "--interactive", "--prompt", "The fox"]
    with Terminal(tmp_path, *command, *endless) as screen:
        screen.wait_for("The fox")
        screen.wait_for_more(200)
        screen.type("typed amid the text")
        screen.wait_for_more(400)
        screen.type(CTRL_C)
        kept = screen.wait_for("\nstopped\n(seed 1)\n").replace("^C", "").rstrip("\n")
        assert kept
        assert "typed amid" not in kept
        screen.type_line("/text" + ENTER)
        screen.wait_for("/text")
        screen.wait_for(f"The fox{kept}\n")
        screen.type_line(CTRL_D)
        assert screen.end() == 0


def test_dumb_terminal_transcript(model_dir: Path, tmp_path: Path, generator: Generator) -> None:
    """The whole output: no control sequences, no menu, no history."""
    flags = ["--decoding", "greedy", "--max_new_tokens", "8"]
    with Terminal(tmp_path, *words(model_dir, *flags), term="dumb") as screen:
        screen.wait_for("\n> ")
        screen.type("The fox\n")
        screen.wait_for("\n> ")
        screen.type("/shw\n")
        screen.wait_for("\n> ")
        screen.type(CTRL_D)
        assert screen.end() == 0
        assert screen.raw.replace("\r\n", "\n") == (
            f"{model_dir} on cpu, fp32, decoding=greedy max_new_tokens=8\n{HELLO}\n"
            f"> The fox\n{greedy(generator, 'The fox')}\n"
            "> /shw\nerror: unknown command /shw: did you mean /show?\n"
            "> \n"
        )
    assert not list(tmp_path.iterdir())


def test_comparison_transcript(model_dir: Path, tmp_path: Path, generator: Generator) -> None:
    """With an output file, with a wrong option, and without a file. Numbers are replaced by N."""
    flags = ["--decoding", "greedy", "--max_new_tokens", "8", "--seed", "7"]
    table = tmp_path / "x.md"
    with Terminal(tmp_path, *words(model_dir, *flags), term="dumb", columns=60) as screen:
        for line in (
            f"/compare strategies=greedy,beam num_sequences=1 output={table} The fox",
            "/compare strategy=greedy The fox",
            "/compare strategies=greedy The fox",
        ):
            screen.wait_for("\n> ")
            screen.type(f"{line}\n")
        screen.wait_for("=== greedy: ")
        screen.wait_for("\n> ")
        screen.type(CTRL_D)
        assert screen.end() == 0
    raw = screen.raw.replace("\r\n", "\n").split("> ", 1)[1]
    shown = re.sub(r" +", " ", re.sub(r"(?<!\w)-?\d+(\.\d+)?%?|\d+|–", "N", raw))
    parts = [
        ("texts tokens/s logprob perplexity distinct-N", "N N N N N"),
        ("distinct-N distinct-N repetition loops Zipf", "N N N N N"),
        ("tokens ended", "N N"),
    ]
    both, alone = (
        "\n\n".join("\n".join([f" {head}", *(f"{name} {row}" for name in names)]) for head, row in parts)
        for names in (("greedy", "beam"), ("greedy",))
    )
    assert shown == (
        f"/compare strategies=greedy,beam num_sequences=N output={re.sub('[0-9]+', 'N', str(table))} The fox\n"
        "seed N\ngreedy: N text\nbeam: N text\n"
        f"{both}\ncomparison written to {re.sub('[0-9]+', 'N', str(table))}\n"
        "> /compare strategy=greedy The fox\n"
        "error: /compare has no option strategy: did you mean strategies?\n"
        "> /compare strategies=greedy The fox\n"
        "seed N\n=== greedy: the most probable token at every step ===\n"
        f"{re.sub(' +', ' ', re.sub('[0-9]+', 'N', greedy(generator, 'The fox')))}\n\n{alone}\n> \n"
    )
    assert "| greedy |" in table.read_text(encoding="utf-8")


def test_unwritable_history_gives_a_notice(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "gpt2tg").write_text("a file where a directory should be")
    with Terminal(tmp_path, *words(model_dir)) as screen:
        screen.wait_for("The history of this session cannot be saved: ")
        screen.type_line("/quit" + ENTER)
        assert screen.end() == 0


ENDLESS = ("--overflow", "slide", "--suppress_eos", "--max_new_tokens", "1000000", "--seed", "1", "--prompt", "The fox")


def modes(screen: Terminal) -> list[object]:
    """Return the terminal's settings, as stty shows them."""
    return termios.tcgetattr(screen._keyboard)


@pytest.mark.parametrize(
    ("moment", "number", "term"),
    [
        ("idle", signal.SIGHUP, "xterm-256color"),
        ("writing", signal.SIGTERM, "dumb"),
        ("comparing", signal.SIGHUP, "xterm-256color"),
    ],
)
def test_signal_ends_the_session_and_restores_the_terminal(
    model_dir: Path, tmp_path: Path, moment: str, number: signal.Signals, term: str
) -> None:
    flags = ENDLESS if moment == "writing" else ("--suppress_eos", "--overflow", "slide", "--max_new_tokens", "3000")
    with Terminal(tmp_path, *words(model_dir, *flags), term=term) as screen:
        before = modes(screen)
        screen.wait_for(HELLO)
        if moment == "writing":
            screen.wait_for("The fox")
            screen.wait_for_more(100)
        else:
            screen.wait_until_ready()
        if moment == "comparing":
            screen.type("/compare strategies=greedy,top_p The fox" + ENTER)
            screen.wait_for("seed ")
        screen._process.send_signal(number)
        assert screen.end() == 128 + number
        assert modes(screen) == before
        assert "Traceback" not in screen.raw
        if term != "dumb":
            assert screen.raw.rindex("\x1b[?2004l") > screen.raw.rfind("\x1b[?2004h")
            assert screen.raw.rindex("\x1b[?25h") > screen.raw.rfind("\x1b[?25l")


def test_ctrl_c_during_startup_ends_the_session(model_dir: Path, tmp_path: Path) -> None:
    """Even while torch is being imported, which otherwise would continue."""
    with Terminal(tmp_path, *words(model_dir), starts_python=True) as screen:
        before = modes(screen)
        maps, end = Path(f"/proc/{screen._process.pid}/maps"), time.monotonic() + PATIENCE
        if sys.platform != "linux":
            pytest.skip("only Linux tells which libraries are loaded")
        while "libtorch" not in maps.read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        screen.type(CTRL_C)
        assert screen.end() == 130
        assert modes(screen) == before
        assert screen.raw.replace("^C", "").strip() == "interrupted"


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_lost_terminal_ends_the_session(model_dir: Path, tmp_path: Path, term: str) -> None:
    """Also without a signal, as under nohup."""
    with Terminal(tmp_path, "-c", NOHUP, *words(model_dir, *ENDLESS), term=term) as screen:
        screen.wait_for("The fox")
        screen.wait_for_more(50)
        os.dup2(os.open(os.devnull, os.O_RDWR), screen._keyboard)
        assert screen._process.wait(PATIENCE) == 129


NOHUP = """
import runpy, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_streamed_text_wraps_at_a_dumb_terminal(model_dir: Path, tmp_path: Path, generator: Generator) -> None:
    flags = ["--decoding", "greedy", "--max_new_tokens", "40", "--prompt", "The owl sold silence by the ounce"]
    with Terminal(tmp_path, *words(model_dir, *flags), term="dumb", columns=24) as screen:
        screen.wait_for(HELLO + "\n")
        text = screen.wait_for("\n> ")
        screen.type(CTRL_D)
        assert screen.end() == 0
    assert text.startswith("The owl sold silence by\nthe")
    options = DecodingOptions(decoding="greedy", max_new_tokens=40, num_sequences=1)
    whole = Style(hides_controls=True).safe(generator.generate(flags[-1], options)[0].text)
    assert "".join(text.split()) == "".join(whole.split())
    lines = [line for line in text.split("\n") if line]
    assert max(wcswidth(line.replace("\t", " ")) for line in lines) <= 24
