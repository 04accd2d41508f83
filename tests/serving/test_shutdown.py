"""A server on a socket, its shutdown, and the command that starts it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from serving_client import Client, serving

import text_generation_demo
from gpt2tg.generation.generator import load
from gpt2tg.options import BUNDLED_MODEL, ServingOptions, decoding_options
from gpt2tg.serving import run
from gpt2tg.serving.app import Service
from gpt2tg.serving.run import bind, new_server


def test_shutdown_waits_and_a_second_signal_cuts() -> None:
    lines: list[str] = []
    options = ServingOptions(serve=True, port=0)
    long = b'{"prompt": "The owl", "overflow": "slide", "max_tokens": 1000000, "suppress_eos": true, "stream": true}'
    with serving(load(BUNDLED_MODEL)) as client, bind(options) as listener:
        server = new_server(client.service, options, lines.append)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert lines == [f"serving on {url}/v1 (Ctrl-C ends it)"]
        with socket.create_connection(listener.getsockname()) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(long)}\r\n\r\n"
            connection.sendall(head.encode() + long)
            assert connection.recv(12) == b"HTTP/1.1 200"
            server.handle_exit(signal.SIGINT, None)
            while len(lines) < 2:
                assert connection.recv(2**16)  # the text goes on
            server.handle_exit(signal.SIGINT, None)
            rest = b"".join(iter(lambda: connection.recv(2**16), b""))
        thread.join(60)
    assert b'"code":"shutting_down"' in rest.split(b"data: ")[-1]
    assert lines[1:] == [
        "shutting down: 1 text may finish within 30 seconds (Ctrl-C cuts them)",
        "1 request was cut",
    ]


def test_command_serves_with_its_flags_as_defaults(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stand:
        """Stands in for the server: sends a request to the application instead of listening."""

        def __init__(self, service: Service, options: ServingOptions, say: object, show: object) -> None:
            self.service = service

        def run(self, sockets: object) -> None:
            answer = Client(self.service).complete(prompt="The owl", model=model_dir.name).json()
            self.service.scheduler.stop()
            print(answer["choices"][0]["text"], end="")

    monkeypatch.setattr(run, "new_server", Stand)
    flags = ["--serve", "--port", "0", "--decoding", "greedy", "--max_new_tokens", "7", "--prompt", "unused"]
    assert text_generation_demo.main(["--model_path", str(model_dir), *flags]) == 0
    greedy = decoding_options({"decoding": "greedy", "max_new_tokens": 7}, num_sequences=1)
    written, said = capsys.readouterr()
    assert written == load(str(model_dir)).generate("The owl", greedy)[0].completion
    assert "--prompt is not used: requests bring their own prompts" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, so a key is needed"),
        (["--compare"], "--serve and --compare contradict each other"),
        (["--tune"], "--serve and --tune contradict each other"),
    ],
)
def test_unsafe_and_contradictory_flags_are_refused(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GPT2TG_API_KEY", raising=False)
    assert text_generation_demo.main(["--serve", *flags]) == 2
    assert message in capsys.readouterr().err
