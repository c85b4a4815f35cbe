"""What child processes run in the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import jsonqueue


def double(task: Any) -> Any:
    return task.data * 2


def tell(path: str, words: str) -> None:
    with open(path, "w") as file:
        file.write(words)


async def tidy_slowly(task: Any) -> None:
    """Hang, and clear up when told to, which takes an ``await``."""
    tell(task.data, f"{os.getpid()}\n")
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        tell(task.data + ".cleared", "0\n")


async def tidy_busily(task: Any) -> None:
    """The same, in the midst of many short steps: of the time that they take, most is the event loop's own."""
    tell(task.data, f"{os.getpid()}\n")
    try:
        while True:  # noqa: ASYNC110 - no event would keep the loop busy
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        tell(task.data + ".cleared", "0\n")


async def tidy_rudely(task: Any) -> None:
    """The same, but hold up the event loop."""
    tell(task.data, f"{os.getpid()}\n")
    try:
        time.sleep(60)  # noqa: ASYNC251 - on purpose
    finally:
        tell(task.data + ".cleared", "0\n")


async def cancel_itself(task: Any) -> None:
    """As a handler does that awaits what was cancelled."""
    raise asyncio.CancelledError


async def double_slowly(task: Any) -> Any:
    return [task.data * 2, jsonqueue.current().task.id]  # type: ignore[union-attr]


def boom(task: Any) -> None:
    raise ValueError("no luck")


def large(task: Any) -> str:
    return "x" * 2000


def leave(task: Any) -> None:
    os._exit(7)


def hang(task: Any) -> None:
    """Tell who we are, ourselves and a process of our own, and never end."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(task.data, "w") as file:
        file.write(f"{os.getpid()} {helper.pid}\n")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def tidy(task: Any) -> None:
    """The same, but clear up when told to: see to what we have started, and tell how it ended."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with open(task.data, "w") as file:
            file.write(f"{os.getpid()} {helper.pid}\n")
        time.sleep(600)
    finally:
        status = helper.wait()
        with open(task.data + ".cleared", "w") as file:
            file.write(f"{status} {jsonqueue.current().cancelled:d}\n")


def babble(task: Any) -> None:
    """Write what is no frame into whatever Pipe there is, and say no more."""
    for fd in range(3, 64):
        with suppress(OSError):
            socket.socket(fileno=os.dup(fd)).sendall(b"hello")
    time.sleep(600)


def leave_a_thread_behind(task: Any) -> None:
    """For which Python waits at its end."""
    threading.Thread(target=time.sleep, args=(600,)).start()


def end_a_fork(task: Any) -> int:
    """As ``Process.terminate()`` of multiprocessing does; how it ended."""
    forked = os.fork()
    if not forked:
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])


def end_a_fork_our_way(task: Any) -> int:
    """The same, where the handler heeds SIGTERM itself."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(3))
    return end_a_fork(task)


def crash_beside_a_fork(task: Any) -> None:
    """End as if for want of memory, and leave behind what was forked."""
    if not os.fork():
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


class Tools:
    @staticmethod
    def halve(task: Any) -> Any:
        return task.data / 2
