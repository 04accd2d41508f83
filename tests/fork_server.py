"""Run `python ...` commands in forks of one process that has torch imported already.

Tests start a hundred Python programs, and each would spend seconds importing torch and transformers. The
server imports them once. A client, which stands in for `python`, hands over its arguments, its working directory, its
environment and its three standard streams; a fork of the server then runs the program as Python would. Signals to the
client reach the program, and the client ends as the program does.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import termios
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock

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

# In the environment of a program: the pseudo-terminal on its stdin becomes its controlling terminal.
OWNS_TERMINAL = "GPT2TG_TESTS_TERMINAL"

# In the environment of a program: training runs draw loss.png.
PICTURES = "GPT2TG_TESTS_PICTURES"

# Signals that a client passes on to its program.
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

CLIENT = f"""#!{sys.executable} -ISE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({{address!r}})
request = dict(python=sys.argv[0], words=sys.argv[1:], directory=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
answers = server.makefile()
program = int(answers.readline())
for number in map(signal.Signals.__getitem__, {FORWARDED}):
    signal.signal(number, lambda number, frame: os.kill(program, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def stand_in(folder: Path, until_end_of: int) -> Path:
    """Return the path of a `python` that runs programs in forks. Whoever asks first in this folder starts the server.

    Args:
        until_end_of: the server ends after the process of this number.
    """
    address, python, log = folder / "socket", folder / "python", folder / "log"
    with FileLock(folder / "lock"):
        if not address.is_socket():
            python.write_text(CLIENT.format(address=str(address)), encoding="utf-8")
            python.chmod(0o755)
            server = _start(log, str(address), str(until_end_of))
            while not address.is_socket():
                assert not os.waitpid(server, os.WNOHANG)[0], log.read_text(encoding="utf-8")
                time.sleep(0.05)
    return python


def _start(log: Path, *words: str) -> int:
    files = [
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(sys.executable, [sys.executable, __file__, *words], os.environ, file_actions=files)


def serve(address: str, until_end_of: int) -> None:
    """Answer requests, each in a process of its own, until another process has ended."""
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    _draw_only_on_request(importlib.import_module("gpt2tg.training.output.records"))
    memory = importlib.import_module("accelerate.utils.memory")
    memory.gc = SimpleNamespace(collect=lambda: 0)  # a collection in each run
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of the libraries
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever answers is not waited for

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(8)
        while _is_alive(until_end_of):
            if not select.select([listener], [], [], 1)[0]:
                continue
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _draw_only_on_request(records: Any) -> None:
    """Let runs draw loss.png, which takes longer than all their steps, only if PICTURES is in their environment."""
    draw = records.draw_losses
    records.draw_losses = lambda history, path, title: (
        draw(history, path, title) if PICTURES in os.environ else path.touch()
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _answer(connection: socket.socket) -> None:
    """Run one program in a fork of this process, and send its number and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    program = os.fork()
    if program == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # Opened anew: those of the server have looked at other files.
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        sys.executable = request["python"]  # what the program starts runs in forks, too
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what runs in the background
        if os.environ.pop(OWNS_TERMINAL, None):
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os._exit(_run(request["words"]))
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{program}\n".encode())
    connection.sendall(f"{_exit_code(program, connection)}\n".encode())
    os._exit(0)


def _exit_code(program: int, connection: socket.socket) -> int:
    """Wait for the end of a program. If its client is killed, so is the program."""
    while True:
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([connection], [], [], 0.01)[0]:  # a client sends nothing more: it is gone
            os.kill(program, signal.SIGKILL)


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
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
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
    serve(sys.argv[1], int(sys.argv[2]))
