"""S14: no error, log line or refusal of ours tells what is in a payload or a result: what is wrong with it, where, and never what it says.

Keys are named (``payload['card'][0]``), since they say where. What a handler itself says, in an exception or on standard error, is kept.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import orjson
import pytest
from msgspec import Raw
from msgspec.structs import replace

from cli.calls import NOW_MS, a_queue_of, call, ended, task
from client.fakes import delivered
from jsonqueue.client import coroutines
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import address_of
from jsonqueue.client.outcome import NotStarted, Verdict, inline
from jsonqueue.client.payload import encode_value
from jsonqueue.client.program import Program, ProgramRunner
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import CONFIG_FILE, Config
from jsonqueue.core.payload import fault_of
from jsonqueue.errors import BadFrame, InvalidTask, JsonQueueError, TasksRejected
from jsonqueue.event import Complete, EventOwner, Fail, Failure, Write, decoder_for, encode
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter
from jsonqueue.task import Outcome, StoredTaskIn, Task, TaskIn, TaskStatus
from security import telling

CANARY = "canary-7Hq"
DATA = json.dumps({"card": [CANARY]}).encode()
SMALL = Config(payload_max_bytes=200, depth_max=3, keys_max=4, string_max_bytes=100)


class Odd:
    """Nothing that JSON has; and whoever prints it tells."""

    def __repr__(self) -> str:
        return CANARY

    __str__ = __repr__


@dataclasses.dataclass(frozen=True)
class Card:
    number: str = CANARY
    rest: Any = math.nan


def _circle() -> list[Any]:
    circle: list[Any] = [CANARY]
    circle.append(circle)
    return circle


BAD_VALUES: dict[str, Any] = {
    "too large": {"card": CANARY * 30},
    "too deep": [[[[CANARY]]]],
    "too many keys": {f"k{number}": CANARY for number in range(5)},
    "a string too long": {"card": CANARY * 11},
    "no JSON": {"card": [CANARY, Odd()]},
    "a set": {"card": {CANARY}},
    "no key": {Odd(): CANARY},
    "no key, and nothing fits below it": {(CANARY,): {CANARY}},
    "no key, and NaN below it": {Card(): None, "a": Card()},
    "a class": Odd,
    "not a number": {"card": [CANARY, math.nan]},
    "not a number, in a dataclass": [None, Card()],
    "beyond 64 bits": {"card": CANARY, "n": 2**70},
    "half a character": {"card": CANARY + "\ud800"},
    "contains itself": _circle(),
    "a fragment that is none": orjson.Fragment(f'"{CANARY}'.encode()),
    "a fragment in the midst": [CANARY, orjson.Fragment(b'"' + CANARY.encode() + b'",')],
}


def _all_of(error: BaseException) -> str:
    """What is printed of an exception that nobody catches, notes and causes included; and its attributes."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_payload_that_is_refused_is_not_told(name: str) -> None:
    """Neither by ``publish`` nor of a result, whatever is wrong with it."""
    for what in ("payload", "result"):
        with pytest.raises(InvalidTask) as caught:
            encode_value(BAD_VALUES[name], what=what, config=SMALL)
        assert CANARY not in _all_of(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"card":"{CANARY}","a":1,"a":2}}',
        f'{{"card":"{CANARY}","n":1e999}}',
        f'{{"card":"{CANARY}","n":{2**70}}}',
        f'{{"card":"{CANARY}","n":NaN}}',
        f'{{"card":"{CANARY}\\ud800"}}',
        f'{{"card":"{CANARY}\xff"}}',
        f'{{"card":"{CANARY * 11}"}}',
        f'[[[["{CANARY}"]]]]',
        f'["{CANARY * 21}"]',
    ],
)
def test_nor_by_a_broker_that_refuses_it(text: str) -> None:
    """What a client wrote that is not ours."""
    fault = fault_of(Raw(text.encode("latin-1")), SMALL)
    assert fault
    assert CANARY not in fault


def test_nor_by_a_broker_that_cannot_read_the_frame() -> None:
    """With any one byte of it another, or with its end missing."""
    known: StoredTaskIn = TaskIn(id="a", data=Raw(DATA))
    frames = {
        EventOwner.PUBLISHER: encode(Write(1, [known])),
        EventOwner.CONSUMER: encode(Complete(1, ["a"], [1], [Raw(DATA)], 1)),
    }
    told: list[str] = []
    for owner, frame in frames.items():
        decode = decoder_for(owner)
        bent = [frame[:at] + other + frame[at + 1 :] for at in range(len(frame)) for other in (b"", b'"', b"}", b"0", b"\xff", b"\\", b"[")]
        for broken in [*bent, *(frame[:end] for end in range(len(frame)))]:
            try:
                decode(broken)
            except BadFrame as error:
                told.append(_all_of(error))
    assert len(told) > 500
    assert CANARY not in "".join(told)


def test_nor_by_a_queue_that_takes_no_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Full, a duplicate, waiting for what is not there: without a broker, which judges by the same code."""
    caplog.set_level(logging.DEBUG)
    queue = tmp_path / "queue"
    queue.mkdir(0o700)
    (queue / CONFIG_FILE).write_text("tasks_max = 1\n")
    with Publisher(queue) as publisher:
        handle = publisher.publish({"card": CANARY}, id="a")
        assert CANARY not in repr(publisher.publish({"card": CANARY}, id="a"))
        for given in ({"id": "b"}, {"id": "c", "after": "nobody"}, {"id": "no id"}, {"id": "d", "priority": "high"}):
            with pytest.raises(JsonQueueError) as caught:
                publisher.publish({"card": CANARY}, **given)
            assert CANARY not in _all_of(caught.value)
        with pytest.raises(TasksRejected) as rejected:
            publisher.publish_many([TaskIn(id="e", data={"card": CANARY}), TaskIn(id="f", data={"card": CANARY}, after=("nobody",))])
        assert CANARY not in _all_of(rejected.value)
    assert CANARY not in repr(handle)
    assert CANARY not in caplog.text


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _given(data: Any = None) -> Task[Any]:
    """A task as its runner gets it: taken apart."""
    return replace(delivered(1), data={"card": [CANARY]} if data is None else data)


def _said(verdict: Verdict) -> str:
    assert isinstance(verdict, Failure), verdict
    return verdict.error


def _children(handler: Callable[[Any], Any], timeout: float | None = 20) -> ChildRunner:
    return ChildRunner(address_of(handler), timeout=timeout, config=lambda: SMALL)


@pytest.mark.parametrize("handler", telling.FAILING, ids=lambda handler: handler.__name__)
def test_an_attempt_that_failed_does_not_tell_its_task(handler: Callable[[Any], Any]) -> None:
    """In this process, as a coroutine, and in a child."""
    for data in ({"card": [CANARY]}, CANARY):
        assert CANARY not in _said(inline(handler, lambda: SMALL)(_given(data)))
    runner = _children(handler)
    try:
        assert CANARY not in _said(runner.run(_given()))
    finally:
        runner.close()


def test_nor_does_a_coroutine() -> None:
    import asyncio

    for handler in telling.FAILING:

        async def awaited(task: Any, handler: Callable[[Any], Any] = handler) -> Any:
            return handler(task)

        assert CANARY not in _said(asyncio.run(coroutines.acall(awaited, _given(), SMALL)))


@pytest.fixture
def child() -> Iterator[ChildRunner]:
    runner = _children(telling.wait, timeout=0.2)
    runner.prepare()
    yield runner
    runner.close()


def test_nor_does_a_child_that_ran_out_of_time(child: ChildRunner) -> None:
    assert _said(child.run(_given())) == "timed out after 0.2 s, and was killed"


@pytest.mark.parametrize(
    "said",
    [
        Complete(0, ["t1"], [7], [Raw(DATA)], 1),
        Fail(0, [], 1),
        Fail(0, [Failure("t1", 7, "x")], 1),
        Complete(0, ["t1"], [101], [Raw(DATA * 9)], 1),
    ],
    ids=["another's result", "nothing", "another's failure", "too large a result"],
)
def test_nor_does_a_child_that_says_what_it_should_not(child: ChildRunner, said: Any) -> None:
    """A result under another token is no result of this task, and no words for its error either."""
    with mock.patch.object(child, "_hear", return_value=said):
        assert CANARY not in _said(child.run(_given()))


def test_nor_does_a_child_or_program_that_cannot_be_started() -> None:
    """The task is handed back, and the log says why."""
    program = ProgramRunner(Program([sys.executable, "-c", "0"]), timeout=5, config=Config)
    for runner in (_children(telling.wait), program):
        with mock.patch("subprocess.Popen", side_effect=OSError(errno.EAGAIN, "no processes")), pytest.raises(NotStarted) as caught:
            runner.run(_given())
        assert CANARY not in _all_of(caught.value)
        runner.close()


@pytest.mark.parametrize(
    "code", ["sys.exit(3)", "sys.exit(75)", "os.kill(os.getpid(), 9)", "print('x' * 999)", "print('[[[[1]]]]')", "time.sleep(60)"]
)
def test_nor_does_a_program_that_fails(code: str) -> None:
    """It was told its task on standard input; what it says of it is its own affair."""
    program = Program([sys.executable, "-S", "-c", f"import os, sys, time\nsys.stdin.read()\n{code}"])
    runner = ProgramRunner(program, timeout=1.0 if "sleep" in code else 20, config=lambda: SMALL)
    assert CANARY not in _said(runner.run(_given()))


# ── on the command line ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [CANARY, f"{{card: {CANARY}}}", f'{{"card": "{CANARY}"', f'["{CANARY}",]', "[" * 2000 + CANARY])
def test_what_is_typed_and_is_no_json_is_not_repeated(tmp_path: Path, data: str) -> None:
    """Where its standard error goes, a log of cron's perhaps, more people read than where it was typed."""
    called = call("publish", data, "--queue", str(tmp_path / "queue"))
    assert called.status == 65
    assert CANARY not in called.out + called.err


@pytest.mark.parametrize("options", [(), ("--tasks",)])
def test_nor_is_a_line_that_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    lines = [
        f'{{"card": "{CANARY}"', CANARY, f'{{"data": {CANARY}}}', f'{{"data": {{"card": "{CANARY}"}}, "id": 5}}',
        f'{{"data": {{"card": "{CANARY}"}}, "prio": 5}}', f'{{"data": {{"card": "{CANARY}", "n": 1e999}}}}', f'"{CANARY}\\ud800"',
        f'{{"card": "{CANARY}", "a": 1, "a": 2}}',
    ]  # fmt: skip
    (tmp_path / "lines").write_text("\n".join(lines))
    with (tmp_path / "lines").open() as given:
        monkeypatch.setattr("sys.stdin", given)
        called = call("publish", *options, "--queue", str(tmp_path / "queue"))
    assert called.status == 65
    assert called.err.count("line ") >= 4
    assert CANARY not in called.out + called.err


def _untold(queue: Path, *commands: str) -> None:
    for command in commands:
        called = call("--queue", str(queue), *command.split())
        assert CANARY not in called.out + called.err, command


def test_nor_does_a_queue_that_is_damaged(tmp_path: Path) -> None:
    """verify and repair name a place; the others name verify and repair."""
    with a_queue_of(tmp_path / "queue", task("a", data={"card": CANARY}), task("b", data=CANARY, number=2)) as queue:
        whole = (queue / "queue.json").read_bytes()
        for at in range(whole.index(b'"data"') - 20, whole.index(b'"data"') + 40, 3):
            (queue / "queue.json").write_bytes(whole[:at] + b"#" + whole[at + 1 :])
            _untold(queue, "verify", "repair", "list")
        (queue / "queue.json").write_bytes(whole.replace(b'"number":2', b'"number":"2"'))
        _untold(queue, "verify", "repair", "repair --accept-edit", "list", "status", "checkpoint")


def test_nor_does_a_task_that_cannot_be_read(tmp_path: Path) -> None:
    """The checksums fit, and it is none."""
    files = RealFiles(tmp_path)
    with QueueWriter.drafting(files, QUEUE, QueueHeader(last_task=1)) as writer:
        writer.add(b'{"id":"a","number":"1","status":"pending","data":"%b"}' % CANARY.encode(), 1)
    files.shut()
    assert "cannot be read" in call("--queue", str(tmp_path), "verify").out
    _untold(tmp_path, "verify", "repair", "list", "show a", "result a", "status", "checkpoint")


def test_nor_does_a_command_that_is_not_asked_to(tmp_path: Path) -> None:
    """A task has no result yet, or is dead."""
    history = (ended(Outcome.FAILED, error="no luck"),)
    lost = task("b", TaskStatus.DEAD, data=CANARY, number=2, reason="it failed", finished_ms=NOW_MS, history=history)
    with a_queue_of(tmp_path / "queue", task("a", data={"card": CANARY}), lost) as queue:
        _untold(queue, "result a", "result b", "status", "status --json", "dead show a", "dead list", "verify", "checkpoint")
