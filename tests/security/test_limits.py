"""S1–S4, S9, S17: what a client may say, to the byte; nothing of it becomes code, a path, or somebody else's business."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - to see that nobody else uses it
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import Raw

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.pipe import FRAME_MAX_BYTES, Pipe
from jsonqueue.channel.registration import SOCKET_NAME, connect
from jsonqueue.client.outcome import ERROR_MAX_BYTES
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import PAYLOAD_MAX_BYTES, Config, parse_config
from jsonqueue.core.publishing import Admission
from jsonqueue.core.ready import ReadyQueue
from jsonqueue.core.taken import TakenIds
from jsonqueue.core.waiting import Seat
from jsonqueue.errors import BadFrame, ConnectionClosed, InvalidConfig
from jsonqueue.event import (
    EVENTS_BY_OWNER,
    Assign,
    Cancel,
    Changed,
    Complete,
    Event,
    EventOwner,
    EventType,
    Fail,
    Failure,
    Heartbeat,
    Join,
    Look,
    Mark,
    Replay,
    Result,
    Return,
    Revoke,
    Settled,
    Watch,
    Welcome,
    Write,
    Written,
    decoder_for,
    encode,
)
from jsonqueue.task import Attempt, Outcome, Task, TaskIn, TaskStatus

_told = decoder_for(EventOwner.CONSUMER_BROKER)


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A queue with brokers."""
    queue_dir = tmp_path_factory.mktemp("served") / "queue"
    with BrokerManager(queue_dir, Config(lease_ms=60_000)):
        yield queue_dir


# ── the wire ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.processes
@pytest.mark.parametrize("owner", [EventOwner.PUBLISHER, EventOwner.CONSUMER, EventOwner.CALLER])
def test_a_pickle_bomb_is_a_bad_frame(served: Path, tmp_path: Path, owner: EventOwner) -> None:
    """It costs its sender the connection; nobody unpickles it, and the next client is served."""
    canary = tmp_path / "canary"
    pipe, _ = connect(served, owner)
    pipe.send(pickle.dumps(_Bomb(canary)))
    with pytest.raises(ConnectionClosed):
        pipe.receive(10)
    pipe.close()
    assert not canary.exists()
    with Publisher(served) as publisher:
        publisher.publish("still served")


@pytest.mark.parametrize(("size", "taken"), [(FRAME_MAX_BYTES - 1, True), (FRAME_MAX_BYTES, True), (FRAME_MAX_BYTES + 1, False)])
def test_the_largest_frame_to_the_byte(size: int, taken: bool) -> None:
    """What is announced beyond it is refused before a byte of it is read, or room for it made."""
    ours, theirs = Pipe.pair()
    pipe = Pipe(ours)
    os.write(theirs, struct.pack("!i", size) + b"x")
    if taken:
        assert pipe.read() == []
    else:
        with pytest.raises(BadFrame, match=str(size)):
            pipe.read()
    pipe.close()
    os.close(theirs)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("owner", "event"),
    [
        (EventOwner.PUBLISHER, Write(1, [TaskIn(id="large", data=Raw(b"1"))])),
        (EventOwner.CONSUMER, Join("large", 1, 0)),
        (EventOwner.CALLER, Look(1, "large")),
    ],
)
def test_a_broker_takes_frames_as_large_as_its_clients_make_to_the_byte(served: Path, owner: EventOwner, event: Event) -> None:
    """n - 1 and n are taken, n + 1 is not: a payload at its limit and 4 MiB, and no longer whatever any Pipe could carry."""
    most = Config().frame_max_bytes
    assert (most, Config(payload_max_bytes=1).frame_max_bytes) == (5 * 2**20, 4 * 2**20 + 1)
    for size in (most - 1, most):
        assert _answered(served, owner, encode(event).ljust(size))  # with spaces behind it, it is the same JSON
    with pytest.raises(ConnectionClosed):
        _answered(served, owner, encode(event).ljust(most + 1))


def test_what_is_taken_in_can_be_handed_out_and_told_of() -> None:
    """However large payloads may be by its settings: a task that no frame holds costs each consumer that it is for its Pipe, and one that
    fits no frame together with its result is told to nobody."""
    most = parse_config(f"payload_max_bytes = {PAYLOAD_MAX_BYTES}").payload_max_bytes
    with pytest.raises(InvalidConfig, match=f"payload_max_bytes is {most + 1}, and must be a whole number from 1 to {most:,}"):
        parse_config(f"payload_max_bytes = {most + 1}")
    large = Raw(b'"' + b"x" * (most - 2) + b'"')
    error = ERROR_MAX_BYTES * "\0"
    tries = [Attempt(n, n, "c" * 128, n, n, Outcome.FAILED, error) for n in range(100)]
    task = Task("a", 1, TaskStatus.COMPLETED, 1, large, after=("i" * 128,) * 32_000, result=large, reason=error, history=tuple(tries))
    assert len(encode(Result(1, "a", task))) <= FRAME_MAX_BYTES
    assert Seat._HELD_MAX_BYTES + len(encode(Assign([task]))) - most <= FRAME_MAX_BYTES


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (20, {"after": ("i" * 128,) * 32_000}),
        (4_096, {"history": tuple(Attempt(n, n << 32, "c" * 128, 10**12, 10**12, Outcome.LOST) for n in range(100))}),
    ],
    ids=["long lists of what they wait for", "long histories"],
)
def test_a_delivery_fits_its_frame_whatever_makes_its_tasks_large(count: int, more: dict[str, Any]) -> None:
    """One that does not would cost the consumer its Pipe, and each one after it."""
    ready, seat = ReadyQueue(), Seat(1, "c@1", 1, 4_096)
    for number in range(1, count + 1):
        ready.add(Task(f"t{number}", number, TaskStatus.PENDING, 1, Raw(b"1"), **more))
    taken = ready.take(seat.free, seat.room_bytes())
    assert taken
    assert len(encode(Assign(taken))) <= FRAME_MAX_BYTES


def _answered(queue_dir: Path, owner: EventOwner, frame: bytes) -> bool:
    """Whether there is an answer."""
    pipe, _ = connect(queue_dir, owner, name="large")
    try:
        pipe.send(frame)
        return bool(pipe.receive(30))
    finally:
        pipe.close()


@pytest.mark.parametrize(("extra", "taken"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("config", [Config(), Config(depth_max=1, payload_max_bytes=64)], ids=["defaults", "small"])
def test_payloads_to_the_byte_and_to_the_level(config: Config, extra: int, taken: bool) -> None:
    """n - 1 and n are taken, n + 1 is not."""
    size, depth = config.payload_max_bytes + extra, config.depth_max + extra
    large = b'"' + b"x" * (size - 2) + b'"'
    deep = b"[" * depth + b"1" + b"]" * depth
    for payload in (large, deep):
        verdict = Admission(TakenIds(), last_task=0, config=config).decide([[TaskIn(id="a", data=Raw(payload))]])[0]
        assert bool(verdict.accepted) is taken


def test_a_frame_of_brackets_is_a_bad_frame_and_no_overflow() -> None:
    """However deep: an error of ours, not the interpreter's stack."""
    for depth in (1_000, 100_000, 5_000_000):
        with pytest.raises(BadFrame):
            decoder_for(EventOwner.PUBLISHER)(b'{"type":"write","request":1,"tasks":[{"id":"a","data":' + b"[" * depth)


@pytest.mark.parametrize("owner", EventOwner)
def test_nobody_says_what_is_anothers_to_say(owner: EventOwner) -> None:
    """A consumer cannot publish, a publisher cannot complete, a client cannot answer: the same frame is taken of its owner alone."""
    others = [
        Write(1, [TaskIn(id="a", data=Raw(b"1"))]), Written(1, 1), Mark(1, 1), Join("c", 1, 1), Welcome("c@1", 1, 1), Assign([]),
        Complete(1, ["a"], [1], [Raw(b"1")], 1), Fail(1, [], 1), Return(1, ["a"], [1], 1), Heartbeat([], [], 1), Settled(1), Revoke([], []),
        Look(1, "a"), Watch(1, ["a"]), Cancel(1, ["a"]), Replay(1, ["a"]), Result(1, "a", None), Changed(1, ["a"]),
    ]  # fmt: skip
    assert {event.type for event in others} == set(EventType)
    for event in others:
        frame = encode(event)
        if owner is event.owner:
            assert decoder_for(owner)(frame) == event
            with pytest.raises(BadFrame, match="extra"):
                decoder_for(owner)(frame[:-1] + b',"extra":1}')
        elif EVENTS_BY_OWNER[owner]:
            with pytest.raises(BadFrame, match=f"not an event that a {owner} may send"):
                decoder_for(owner)(frame)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_PIECES = [
    "..", ".", "/", "\\", "\0", "~", "%2e%2e", "%2f", "\u2025", "\u2215", "\uff0f", "\uff0e", "\u202e", "\n", "\r", " ", "\t", "*", "?",
    "$(id)", "`id`", ";", "|", "&", "'", '"', "<", ">", "\x1b[2J", "\ud800", "CON", "NUL", "aux.txt", "file://", "http://", "C:", "-rf",
    "--", "_", "é", "e\u0301", "ß", "İ", "🚀", "\ufeff", "\u200b", "\x7f", "\x80", "etc", "passwd", "queue.json", "a", "Z", "0",
]  # fmt: skip
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@-")


def test_of_five_thousand_odd_names_only_plain_ones_are_taken() -> None:
    """Ids and names of consumers: one small alphabet, a letter or a digit first, so that none is a path, an option or an escape."""
    chance, taken, join = Random(3), 0, decoder_for(EventOwner.CONSUMER)
    for _ in range(5_000):
        name = "".join(chance.choices(_PIECES, k=chance.randrange(1, 5)))
        plain = set(name) <= _SAFE and name[0].isascii() and name[0].isalnum()
        admission = Admission(TakenIds(), last_task=0, config=Config())
        both = admission.decide([[TaskIn(id="ok", data=Raw(b"1")), TaskIn(id=name, data=Raw(b"1"))]])[0].accepted
        assert (name in {task.id for task in both}) is plain, ascii(name)
        taken += plain
        frame = json.dumps({"type": "join", "name": name, "pid": 1, "want": 1}).encode()
        try:
            join(frame)
        except BadFrame:
            assert not plain, ascii(name)
        else:
            assert plain, ascii(name)
    assert 50 < taken < 1_000


@pytest.mark.parametrize(("length", "taken"), [(127, True), (128, True), (129, False)])
def test_the_longest_id_to_the_letter(length: int, taken: bool) -> None:
    verdict = Admission(TakenIds(), last_task=0, config=Config()).decide([[TaskIn(id="x" * length, data=Raw(b"1"))]])[0]
    assert bool(verdict.accepted) is taken


# ── whose task it is ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.processes
def test_a_consumer_can_settle_and_keep_only_what_it_holds(served: Path) -> None:
    """It knows another's task and token to the bit, and says all it may: nothing changes, and the owner completes it."""
    with Publisher(served) as publisher:
        handle = publisher.publish({"secret": 1}, id="mine", priority=9)  # before all that lies about in this queue
        owner, thief = _consumer(served, "owner", want=1), _consumer(served, "thief", want=0)
        (task,) = _hear(owner, Assign).tasks
        ids, tokens = [task.id], [task.token]
        for request, event in enumerate(
            [
                Complete(1, ids, tokens, [Raw(b'"stolen"')], 0),
                Fail(2, [Failure(task.id, task.token, "stolen")], 0),
                Return(3, ids, tokens, 0),
            ],
            start=1,
        ):
            thief.send(encode(event))
            settled = _hear(thief, Settled)
            # What is given back unstarted is nobody's loss if it is not held any more: no word is made of it.
            assert (settled.request, settled.stale) == (request, [] if isinstance(event, Return) else tokens)
        thief.send(encode(Heartbeat(ids, tokens, 0)))
        caller, _ = connect(served, EventOwner.CALLER)
        caller.send(encode(Look(1, task.id)))
        seen = _hear(caller, Result).task
        assert (seen.status, seen.token, seen.consumer) == (TaskStatus.IN_PROGRESS, task.token, f"owner@{os.getpid()}")
        caller.close()
        owner.send(encode(Complete(1, ids, tokens, [Raw(b'"done"')], 0)))
        assert _hear(owner, Settled).stale == []
        assert handle.result(timeout=20) == "done"
    owner.close()
    thief.close()


def _consumer(queue_dir: Path, name: str, *, want: int) -> Pipe:
    pipe, _ = connect(queue_dir, EventOwner.CONSUMER, name=name)
    pipe.send(encode(Join(name, os.getpid(), want)))
    _hear(pipe, Welcome)
    return pipe


_heard: dict[Pipe, list[Any]] = {}


def _hear(pipe: Pipe, kind: type) -> Any:
    """The next event of this kind; the others wait for their turn (an assignment may come before the welcome)."""
    heard = _heard.setdefault(pipe, [])
    while not any(isinstance(event, kind) for event in heard):
        frames = pipe.receive(10)
        assert frames, f"no {kind.__name__} came"
        heard += map(_told, frames)
    return heard.pop(next(index for index, event in enumerate(heard) if isinstance(event, kind)))


# ── nothing is run, and nothing is opened elsewhere ──────────────────────────────────────────────────────────────────

_CELERY_LIKE = [
    {"task": "os.system", "args": ["touch canary"]},
    {"__reduce__": ["os.system", ["touch canary"]]},
    {"py/object": "os.system", "py/reduce": [{"py/function": "os.mkdir"}, ["canary"]]},
    {"exc_type": "system", "exc_module": "os", "exc_message": ["touch canary"]},
    "{0.__class__.__mro__} %(x)s ${jndi:ldap://x} {{7*7}} `touch canary` $(touch canary)",
    "__import__('os').mkdir('canary')",
]

_FORBIDDEN = {"pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "exec"}


def test_a_broker_at_work_runs_nothing_and_opens_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit hook sees all that both brokers do with payloads that look like code, from open to close, a checkpoint included."""
    from broker.test_frames import Clients
    from jsonqueue.broker.consumer_broker import ConsumerBroker
    from jsonqueue.broker.publisher_broker import PublisherBroker
    from jsonqueue.clock import SystemClock
    from jsonqueue.storage.checkpoint import final_checkpoint
    from jsonqueue.storage.folder import open_folder
    from jsonqueue.storage.recovery import load_state

    assert Clients  # imported now, and all that it needs: imports open files
    monkeypatch.chdir(tmp_path)
    files, clock, config = open_folder(tmp_path / "queue", create=True), SystemClock(), Config(disk_reserve_bytes=0)
    told: list[tuple[int, Any]] = []

    def send(peer: int, event: Any) -> None:
        told.append((peer, event))

    def work() -> None:
        publisher = PublisherBroker(files, clock, config, announce=marks.append)
        consumer = ConsumerBroker(files, clock, config, chance=Random(1))
        publisher.open()
        consumer.open()
        publisher.attach(1)
        consumer.attach(2)
        tasks = [TaskIn(id=f"t{n}", data=Raw(json.dumps(payload).encode())) for n, payload in enumerate(_CELERY_LIKE)]
        publisher.step([(1, Write(1, tasks))], send)
        consumer.step([(0, marks[-1]), (2, Join("c", os.getpid(), 10))], send)
        (assign,) = [event for _, event in told if isinstance(event, Assign)]
        held = assign.tasks
        consumer.step([(2, Complete(1, [task.id for task in held], [task.token for task in held], [task.data for task in held], 0))], send)
        publisher.close()
        consumer.close()
        final_checkpoint(files, config=config, at_ms=clock.wall_ms())
        loaded = load_state(files, published_through=None)
        assert {task.status for task in loaded.state.tasks.values()} == {TaskStatus.COMPLETED}

    marks: list[Any] = []
    with _Audited() as audited:
        work()
    files.shut()
    assert not audited.forbidden
    assert {os.path.dirname(path) for path in audited.opened} <= {"", "archive", "previous"}, "names relative to the folder's descriptor"
    assert audited.opened
    assert not (tmp_path / "canary").exists()


class _Audited:
    """Notes what happens in this process, within. A hook cannot be taken away again: outside it notes nothing."""

    def __init__(self) -> None:
        self.forbidden: list[tuple[str, str]] = []
        self.opened: set[str] = set()
        self._on = False
        sys.addaudithook(self._note)

    def __enter__(self) -> _Audited:
        self._on = True
        return self

    def __exit__(self, *what: object) -> None:
        self._on = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in _FORBIDDEN:
            self.forbidden.append((event, repr(arguments)[:200]))
        if event == "open" and isinstance(arguments[0], str):
            self.opened.add("" if arguments[0] == "." else arguments[0])


# ── many half-open connections ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_hundreds_of_half_open_connections_cost_a_bounded_number_of_files(served: Path) -> None:
    """Six hundred callers say nothing, or half a frame: the desk holds 512 of them at most, and who speaks is served meanwhile."""
    import socket

    before = len(os.listdir("/proc/self/fd"))
    silent = []
    try:
        for number in range(600):
            caller = socket.socket(socket.AF_UNIX)
            caller.connect(str(served / SOCKET_NAME))
            if number % 2:
                caller.sendall(b"\0\0\0")
            silent.append(caller)
        with Publisher(served) as publisher:
            publisher.publish("served")
        # Our end of each, and at most 512 at the manager's, which is in this process; some slack for what else lives here.
        assert len(os.listdir("/proc/self/fd")) - before < 600 + 512 + 40
    finally:
        for caller in silent:
            caller.close()
