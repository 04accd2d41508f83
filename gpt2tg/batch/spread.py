"""Spread work over the processes that torchrun or accelerate launch started.

The first process hands out tasks, and every process, the first included, takes the next one when it has finished its
last. Results go back to the first process at once, so that it can write them. All of this goes through the store by
which the processes of a launcher find each other: they need no common disk, and form no process group.

accelerate's `split_between_processes` gives each process one fixed share in advance, and `gather_object` collects the
results at the end. Then all wait for the process with the longest texts, and if one is killed, all results are lost.

The keys of the store:

    taken           how many tasks were taken; whoever raises it to n takes task n
    task/n          a task, or null: nothing is left
    sent            how many results were sent
    result/n        a result, or null: its sender will send no more
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gpt2tg.errors import RunError, UserError, one_line
from gpt2tg.io.processes import is_main_process, process_count

# How often a process looks for what another one may have put into the store, in seconds.
POLL = 0.01

# The number of the next piece of work, equal in all processes: each has keys of its own.
_works = itertools.count()


def spread(
    tasks: Iterable[Any] | None,
    perform: Callable[[Any], Iterable[Any]],
    put: Callable[[Any], None] = lambda _: None,
) -> None:
    """Perform all tasks, in all processes. Each process must call this; tasks and results are stored as JSON.

    Args:
        tasks: in the first process; None in the others.
        perform: yields the results of a task.
        put: takes each result, in the first process, in the order in which they are finished. Runs in a thread.

    Raises:
        UserError: the variables by which a launcher tells the processes where to meet are missing.
        RunError: the launcher or the first process has ended.
        Exception: what `perform` or `put` raises.
    """
    with _naming_the_store():
        store = _join()
        if tasks is None:
            _work(store, perform, check=lambda: None)
            return
        with _Dispatcher(store, tasks, put) as dispatcher:
            _work(store, perform, dispatcher.check)
            dispatcher.wait()


def share(value: str) -> str:
    """Return in every process the value that the first one gives. Each must call this.

    Raises:
        UserError, RunError: as `spread`.
    """
    with _naming_the_store():
        store = _join()
        if is_main_process():
            store.set("value", value)
        return _wait_for(store, "value", check=lambda: None)


def _join() -> Store:
    """Connect to the store, under a prefix that no other piece of work has.

    torchrun restarts failed processes (--max_restarts) with the same store, which still has the keys of the attempt
    before.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"gpt2tg/{attempt}/{next(_works)}", _launcher_store())


@functools.cache
def _launcher_store() -> Store:
    """Connect to the store once: without torchrun's, the first process serves it as long as it is connected."""
    try:
        store: Store = next(rendezvous("env://"))[0]
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE={process_count()} announces several processes, but they cannot meet: start them with torchrun "
            f"({one_line(str(error).rpartition(': ')[2])})"
        ) from None
    return store


@contextlib.contextmanager
def _naming_the_store() -> Iterator[None]:
    try:
        yield
    except torch.distributed.DistError as error:
        raise RunError(
            f"lost the connection to the first process or its launcher: it has ended ({one_line(error, 80)})"
        ) from error


def _wait_for(store: Store, key: str, check: Callable[[], None]) -> str:
    """Return what another process puts into the store. `check` is called while nothing is there."""
    while not store.check([key]):
        check()
        time.sleep(POLL)
    return str(store.get(key).decode())


def _work(store: Store, perform: Callable[[Any], Iterable[Any]], check: Callable[[], None]) -> None:
    """Perform the tasks that this process takes, until nothing is left."""

    def send(result: Any) -> None:
        store.set(f"result/{store.add('sent', 1)}", json.dumps(result))

    while True:
        key = f"task/{store.add('taken', 1)}"
        task = json.loads(_wait_for(store, key, check))
        store.delete_key(key)
        if task is None:
            break
        for result in perform(task):
            send(result)
            check()
    send(None)


class _Dispatcher:
    """Hands out the tasks and receives the results, in a thread of the first process."""

    def __init__(self, store: Store, tasks: Iterable[Any], put: Callable[[Any], None]) -> None:
        self._store = store
        self._put = put
        self._count = process_count()
        # One null for each process: each takes exactly one.
        self._tasks = itertools.chain(tasks, itertools.repeat(None, self._count))
        self._published = 0
        self._failure: BaseException | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Dispatcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_closed.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what the thread failed with."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Wait until all results are here, and raise what the thread failed with."""
        while self._thread.is_alive():
            self._thread.join(POLL)  # not without a timeout, during which Ctrl-C would wait
        self.check()

    def _run(self) -> None:
        try:
            received, busy = 0, self._count
            while busy and not self._is_closed.is_set():
                self._publish()
                key = f"result/{received + 1}"
                if not self._store.check([key]):
                    time.sleep(POLL)
                    continue
                result = json.loads(self._store.get(key))
                self._store.delete_key(key)
                received += 1
                if result is None:
                    busy -= 1
                else:
                    self._put(result)
        except BaseException as error:
            self._failure = error

    def _publish(self) -> None:
        """Keep a task ready for each process. More would only fill the memory of the store."""
        wanted = self._store.add("taken", 0) + self._count
        for task in itertools.islice(self._tasks, max(0, wanted - self._published)):
            self._published += 1
            self._store.set(f"task/{self._published}", json.dumps(task))
