"""Run `python ...` commands in forks of one process that has torch imported already.

A page of the docs starts dozens of Python programs, and each would spend seconds importing torch and transformers. The
server imports them once. A client, which stands on PATH under the name `python`, hands over its arguments, its working
directory, its environment and its three standard streams; a fork of the server then runs the program as Python would.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What takes long to import, of all that our programs use.
LIBRARIES = (
    "gpt2tg.generation.generator",
    "gpt2tg.training.finetune",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "optuna",
    "peft",
    "prompt_toolkit",
    "sacrebleu",
)

CLIENT = f"""#!{sys.executable} -ISE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({{address!r}})
request = dict(words=sys.argv[1:], directory=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.makefile().readline()))
"""


def write_client(path: Path, address: str) -> None:
    """Write the program that stands in for `python`."""
    path.write_text(CLIENT.format(address=address), encoding="utf-8")
    path.chmod(0o755)


def serve(address: str) -> None:
    """Accept requests for ever, each in a process of its own."""
    for library in LIBRARIES:
        importlib.import_module(library)
    # Runs draw no loss.png, which takes longer than all their steps.
    records = importlib.import_module("gpt2tg.training.output.records")
    records.draw_losses = lambda history, path, title: path.touch()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the libraries

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(8)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()
            _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(connection: socket.socket) -> None:
    """Run one program in a fork of this process, and send its exit code."""
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    program = os.fork()
    if program == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # Opened anew: those of the server have looked at other files.
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        os._exit(_run(request["words"]))
    _, status = os.waitpid(program, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(words: list[str]) -> int:
    """Run `python WORDS` in this process; return its exit code."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve(sys.argv[1])
