"""The page's server as a process of its own: what a kill leaves, and which flags are refused."""

from __future__ import annotations

import http.client
import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import text_generation_demo
from gpt2tg.desk.desk import Desk
from gpt2tg.desk.store import open_store

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"the page to write on: http://127\.0\.0\.1:(\d+) \(Ctrl-C ends the server\)\n")


class ServerProcess:
    """A server that was started by the command."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program
        assert program.stderr
        found = ADDRESS.fullmatch(program.stderr.readline())
        assert found
        self.port = int(found[1])

    @contextmanager
    def sent(self, path: str, fields: Any) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with closing(connection):
            connection.request("POST", f"/api/{path}", json.dumps(fields))
            with connection.getresponse() as answer:
                assert answer.status < 300
                yield answer

    def ask(self, path: str, fields: Any) -> Any:
        with self.sent(path, fields) as answer:
            return json.loads(answer.read())


@contextmanager
def server(python: Path, model: Path, file: Path) -> Iterator[ServerProcess]:
    command = [python, "text_generation_demo.py", "--web", "--no_browser", "--port", "0", "--model_path", model]
    program = subprocess.Popen([*command, "--texts_file", file], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with program:
        try:
            yield ServerProcess(program)
        finally:
            program.kill()


def test_kill_loses_no_typed_text_and_a_second_of_generated(
    forked_python: Path, model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.db"
    endless = {"seed": 1, "decoding": "sample", "overflow": "slide", "max_new_tokens": 100_000, "suppress_eos": True}
    with server(forked_python, model_dir, file) as first:
        text = first.ask("texts", {"text": "Once"})
        typed = "Once"
        for word in (" upon", " a", " time"):
            typed += word
            grown = first.ask(f"texts/{text['id']}/edit", {"node": text["current"], "text": typed})
        pieces: list[tuple[float, str]] = []
        fields = {"node": grown["current"], "settings": endless}
        with first.sent(f"texts/{text['id']}/continue", fields) as stream:
            while not pieces or pieces[-1][0] < pieces[0][0] + 1.4:
                line = stream.readline().decode()
                event = json.loads(line.removeprefix("data: ")) if line.strip() else {}
                if event.get("type") == "piece":
                    pieces.append((time.monotonic(), event["text"]))
            first.program.kill()
            killed = time.monotonic()
            first.program.wait()
    shown = "".join(piece for when, piece in pieces if when < killed - 1)
    assert len(shown) > 10
    with closing(sqlite3.connect(file)) as database:
        kept, generated = (row[0] for row in database.execute("SELECT text FROM nodes ORDER BY id"))
    assert kept == typed
    assert generated.startswith(shown)
    with closing(open_store(file)) as store:
        node = Desk(store).view(text["id"]).nodes[1]
        assert (node.text, node.finish_reason) == (generated, "interrupted")
        assert "".join(token["text"] for token in node.tokens or ()) in ("", generated)


def test_ctrl_c_closes_the_file_and_only_one_server_may_use_it(
    forked_python: Path, model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.db"
    with server(forked_python, model_dir, file) as first:
        first.ask("texts", {"text": "Mine"})
        command = ["text_generation_demo.py", "--web", "--port", "0", "--model_path", model_dir, "--texts_file", file]
        second = subprocess.run([forked_python, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
        assert f"--texts_file {file} is in use by another server" in second.stderr
        first.program.send_signal(signal.SIGINT)
        assert first.program.wait(30) in (-signal.SIGINT, 130)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.db"]  # nothing is left beside it


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--web", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, so a key is needed"),
        (["--web", "--compare"], "--web and --compare contradict each other"),
        (["--web", "--texts_file", str(ROOT)], f"--texts_file {ROOT} cannot be used: is a directory"),
        (["--web", "--models_folder", "nowhere"], "--models_folder nowhere is no folder: give one that holds models"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GPT2TG_API_KEY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert text_generation_demo.main([*flags, "--port", "0"]) == 2
    assert message in capsys.readouterr().err
