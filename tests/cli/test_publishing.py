"""publish: what is typed, what is piped in, and what is said about it. Real queue folders, no broker."""

from __future__ import annotations

import codecs
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest

from cli.calls import call
from jsonqueue.cli import lines
from jsonqueue.cli.lines import Line, LineGroups
from jsonqueue.cli.options import MOMENT, RETRY, WAIT, WAIT_OR_MOMENT
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import BrokerUnavailable, InvalidTask, PublishUnknown, Rejection, TasksRejected
from jsonqueue.retry import Exponential, Linear
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import StoredTask


def stored(queue: Path) -> dict[str, StoredTask]:
    return inspect(queue).state.tasks


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


Feed = Callable[[bytes], None]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Feed]:
    """Let standard input be a file with this text."""
    with (tmp_path / "input").open("w+b") as file:

        def put(text: bytes) -> None:
            file.write(text)
            file.seek(0)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))

        yield put


@pytest.mark.parametrize("data", ['{"a": [1, 2]}', "0", '""', "[]", "null", "12345678901234567890.5e3", '"\\u001b"', " [1,\n 2] "])
def test_data_is_stored_as_the_json_it_is(queue: Path, data: str) -> None:
    """Falsy payloads are payloads, and a figure keeps all its digits."""
    called = call("publish", data, "--queue", str(queue))
    assert (called.status, called.err) == (0, "")
    (task,) = stored(queue).values()
    assert task.id == called.out.strip()
    assert json.loads(bytes(task.data)) == json.loads(data)
    assert b"\n" not in bytes(task.data)


def test_a_figure_keeps_its_digits(queue: Path) -> None:
    call("publish", "1.23456789012345678901234567890", "--id", "n", "--queue", str(queue))
    assert bytes(stored(queue)["n"].data) == b"1.23456789012345678901234567890"


@pytest.mark.parametrize(
    ("data", "said"), [("123456789012345678901234567890", "64 bits"), ('{"a":1,"a":2}', "twice"), ('{"a":[1e999]}', "out of range")]
)
def test_what_two_readers_would_read_differently_is_refused(queue: Path, data: str, said: str) -> None:
    """JSON by its grammar, but a consumer would not get what the publisher wrote; the words name the task and what to do."""
    called = call("publish", data, "--id", "odd-one", "--queue", str(queue))
    assert (called.status, called.out) == (65, "")
    assert "odd-one" in called.err
    assert said in called.err
    assert not stored(queue)


@pytest.mark.parametrize("data", ["{a: 1}", "hello", "", "NaN", "[1", "{'a': 1}"])
def test_what_is_no_json_is_refused_with_a_way_out(queue: Path, data: str) -> None:
    """It is not guessed to be a string: `publish true` and `publish yes` would be different things."""
    called = call("publish", data, "--queue", str(queue))
    assert (called.status, called.out) == (65, "")
    assert "--text" in called.err
    assert not queue.exists() or not stored(queue)


def test_text_is_a_string(queue: Path) -> None:
    call("publish", "--text", "it's {plain}", "--id", "t", "--queue", str(queue))
    assert bytes(stored(queue)["t"].data) == b'"it\'s {plain}"'


@pytest.mark.parametrize("arguments", [["--text", "caf\udce9"], ['"caf\udce9"']])
def test_data_that_is_not_utf_8_is_refused(queue: Path, arguments: list[str]) -> None:
    """A name of a file, say. As --text it ended as a bug of ours."""
    called = call("publish", *arguments, "--queue", str(queue))
    assert (called.status, called.err.splitlines()[0]) == (65, "Error: DATA is not UTF-8, as all text in JSON is")


def test_an_empty_id_is_refused(queue: Path) -> None:
    """It is a script's variable without a value, and no wish for a name of the queue's own."""
    called = call("publish", "1", "--id", "", "--queue", str(queue))
    assert (called.status, called.err.splitlines()[0]) == (65, "Error: invalid id ''")
    assert not queue.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_cannot_be_printed_is_published_all_the_same(queue: Path, as_json: list[str]) -> None:
    """The error names standard output and the ids, so that nobody takes the queue's disk for full and publishes again."""
    run = [sys.executable, "-m", "jsonqueue", "--queue", str(queue), "publish", *as_json]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open("/dev/full", "w") as full:
        one = subprocess.run([*run, "1", "--id", "one"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        many = subprocess.run(run, input="1\n2\n", stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    begins = "Error: standard output cannot be written to: no space left on device; "
    assert (one.returncode, many.returncode) == (74, 74)
    assert one.stderr.splitlines()[0] == f"{begins}task one is published all the same"
    first, second = [*stored(queue)][1:]
    assert f"{begins}2 tasks ({first}, {second}) are published all the same" in many.stderr.splitlines()


def test_an_id_is_published_once(queue: Path) -> None:
    """The second publish says so, and exits with 0: what was wanted is so."""
    assert json.loads(call("publish", "1", "--id", "x", "--queue", str(queue), "--json").out) == {"id": "x", "duplicate": False}
    again = call("publish", "2", "--id", "x", "--queue", str(queue), "--json")
    assert (again.status, json.loads(again.out)) == (0, {"id": "x", "duplicate": True})
    assert "already" in again.err
    assert bytes(stored(queue)["x"].data) == b"1"


def test_nobody_is_told_an_id_that_is_not_to_be_printed(queue: Path) -> None:
    """--quiet counts beside --json, too."""
    for words in ([], ["--json"]):
        called = call("publish", "1", "--quiet", *words, "--queue", str(queue))
        assert (called.status, called.out) == (0, "")


def test_options_travel_with_the_task(queue: Path) -> None:
    for needed in ("a", "b"):
        call("publish", "0", "--id", needed, "--queue", str(queue))
    call(
        "publish", "1", "--id", "x", "--priority", "-5", "--run-at", "2030-01-02T03:04:05Z", "--deadline", "2031-01-01T00:00Z",
        "--attempts-max", "7", "--retry", "linear", "--after", "a", "--after", "b", "--queue", str(queue),
    )  # fmt: skip
    task = stored(queue)["x"]
    assert (task.priority, task.attempts_max, task.retry, task.after) == (-5, 7, Linear(), ("a", "b"))
    assert (task.run_at_ms, task.deadline_ms) == (1_893_553_445_000, 1_924_992_000_000)


def test_lines_are_published_in_order(queue: Path, feed: Feed) -> None:
    """Blank lines are none; the last needs no line feed; each id printed belongs to its line."""
    feed(b'{"n": 1}\n\n2\r\n"three"')
    called = call("publish", "--priority", "3", "--queue", str(queue))
    assert called.status == 0
    assert called.err.startswith("3 tasks published in ")
    tasks = stored(queue)
    assert [bytes(tasks[task_id].data) for task_id in called.out.split()] == [b'{"n":1}', b"2", b'"three"']
    assert {task.priority for task in tasks.values()} == {3}


def test_a_bad_line_is_named_and_the_others_are_published(queue: Path, feed: Feed) -> None:
    """Nothing before it is lost, nor behind it; the exit status tells."""
    feed(b"1\n{oops\n2\n" + b'"' + b"x" * 1_100_000 + b'"\n3\n')
    called = call("publish", "--queue", str(queue))
    assert called.status == 65
    complaints = called.err.splitlines()
    assert complaints[0].startswith("line 2: not JSON")
    assert complaints[1].startswith("line 4: ")
    assert complaints[2].startswith("3 tasks published in ")
    assert complaints[2].endswith("2 bad lines left out.")
    tasks = stored(queue)
    assert [bytes(tasks[task_id].data) for task_id in called.out.split()] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("whole", "text"), [([], b'{"n":1}\n2\n'), (["--tasks"], b'{"data":{"n":1}}\n{"data":2}\n'), ([], b'\n{"n":1}\n2')]
)
def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_line(queue: Path, feed: Feed, whole: list[str], text: bytes) -> None:
    """Files saved on Windows have one. Their first task was left out as no JSON."""
    feed(codecs.BOM_UTF8 + text)
    called = call("publish", *whole, "--queue", str(queue))
    assert (called.status, [bytes(task.data) for task in stored(queue).values()]) == (0, [b'{"n":1}', b"2"])


def test_a_byte_order_mark_further_on_is_part_of_its_line(queue: Path, feed: Feed) -> None:
    """Of files that were put together with cat, say: the line is named, and no byte of the others is passed over."""
    feed(b"3\n" + codecs.BOM_UTF8 + b"4\n")
    called = call("publish", "--queue", str(queue))
    assert (called.status, called.err.splitlines()[0][:16]) == (65, "line 2: not JSON")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_what_is_utf_16_is_called_so(queue: Path, feed: Feed, encoding: str) -> None:
    """Once, and not each line of it."""
    feed("\ufeff1\n2\n3\n".encode(encoding))
    called = call("publish", "--queue", str(queue))
    assert (called.status, called.out) == (65, "")
    assert called.err.splitlines()[1:] == ["Error: the input is UTF-16, and JSON is UTF-8", "Hint:  iconv -f UTF-16 -t UTF-8 makes it that"]


def test_only_so_many_bad_lines_are_named(queue: Path, feed: Feed) -> None:
    """A file of the wrong kind must not scroll everything away."""
    feed(b"no\n" * 500)
    called = call("publish", "--queue", str(queue))
    assert called.status == 65
    assert len(called.err.splitlines()) == 21
    assert "500 bad lines left out" in called.err


def test_whole_tasks_bring_their_own_options(queue: Path, feed: Feed) -> None:
    """--tasks: each line is what a TaskIn is; one with an unknown member is named."""
    feed(b'{"id":"a","data":{"x": 1.50},"priority":9}\n{"data":0,"after":["a"]}\n{"id":"a","data":2}\n{"dta":1}\n')
    called = call("publish", "--tasks", "--queue", str(queue))
    assert called.status == 65
    assert "unknown field `dta`; a task has id, data, priority, run_at_ms, deadline_ms, attempts_max, retry, after\n" in called.err
    tasks = stored(queue)
    assert (bytes(tasks["a"].data), tasks["a"].priority) == (b'{"x":1.50}', 9)
    assert [task.after for task in tasks.values()] == [(), ("a",)]
    assert called.err.splitlines()[0].startswith("line 4: not a task")
    assert "2 tasks published" in called.err
    assert "1 duplicate left out" in called.err


@pytest.mark.parametrize("whole", [[], ["--tasks"]])
def test_a_line_that_is_nested_too_deep_is_a_bad_line(queue: Path, feed: Feed, whole: list[str]) -> None:
    """Deeper than its reader goes: it is named and left out like any other, and is no bug of ours."""
    deep = b"[" * 100_000 + b"]" * 100_000
    if whole:
        feed(b'{"data":1}\n{"data":%b}\n{"data":2}\n' % deep)
    else:
        feed(b"1\n%b\n2\n" % deep)
    called = call("publish", *whole, "--queue", str(queue))
    assert (called.status, len(called.out.split())) == (65, 2)
    assert called.err.startswith("line 2: nested deeper than any queue takes")
    assert "1 bad line left out" in called.err
    assert [bytes(task.data) for task in stored(queue).values()] == [b"1", b"2"]


def test_data_that_is_nested_too_deep_is_refused(queue: Path) -> None:
    called = call("publish", "[" * 100_000 + "]" * 100_000, "--queue", str(queue))
    assert (called.status, called.err) == (65, "Error: DATA is nested deeper than any queue takes (depth_max is at most 200)\n")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--priority", "0"], '--priority does not go with --tasks, whose lines bring their own options: write "priority" into the lines'),
        (["--run-at", "2026-11-30T14:00Z"], 'write "run_at_ms"'),
        (["--delay", "5"], 'write "run_at_ms"'),
        (["--deadline", "5"], 'write "deadline_ms"'),
        (["--attempts-max", "5"], 'write "attempts_max"'),
        (["--retry", "never"], 'write "retry"'),
        (["--after", "a"], 'write "after"'),
    ],
)
def test_an_option_that_would_count_for_nothing_is_refused(queue: Path, feed: Feed, option: list[str], said: str) -> None:
    """Beside --tasks; nothing is published."""
    feed(b'{"data":1}\n')
    called = call("publish", "--tasks", *option, "--queue", str(queue))
    assert (called.status, called.out) == (2, "")
    assert said in called.err
    assert not queue.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stream_that_is_cut_off_counts_what_was_answered(
    queue: Path, feed: Feed, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """Ctrl-C, or `timeout`, in the midst of a million lines: those that are stored must not be called none, or they are published again."""

    def cut_off(
        _: Publisher, tasks: Iterable[Any], *, on_progress: Callable[[int], None], on_acknowledged: Callable[[list[str]], None]
    ) -> None:
        on_acknowledged([task.id for task in tasks])
        on_progress(3)
        signal.raise_signal(number)

    monkeypatch.setattr(Publisher, "publish_many", cut_off)
    feed(b"1\n" * 3)
    # Whoever runs these tests may ignore Ctrl-C, or hangups; and whatever comes of the others, it ends no tests.
    before = {minded: signal.signal(minded, signal.default_int_handler) for minded in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        called = call("publish", "--queue", str(queue))
    finally:
        for minded, handler in before.items():
            signal.signal(minded, handler)
    assert (called.status, len(called.out.split())) == (status, 3)
    assert called.err.startswith("0 tasks published in ")
    assert ", 3 more answered before it was cut off (published, unless refused or known)" in called.err


def test_an_id_is_for_one_task(queue: Path, feed: Feed) -> None:
    feed(b"1\n")
    assert call("publish", "--id", "x", "--queue", str(queue)).status == 2


def test_a_person_gets_the_summary_and_not_a_million_ids(queue: Path, feed: Feed) -> None:
    feed(b"1\n2\n")
    called = call("publish", "--queue", str(queue), terminal=True)
    assert called.out == ""
    assert "2 tasks published" in called.err


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_that_drip_are_handed_on_at_once() -> None:
    """The reader of a pipe gets what is there, without waiting for more; a line that comes in pieces is one line."""
    reader, writer = os.pipe()
    groups = iter(LineGroups(reader))
    os.write(writer, b"1\n2\n3")
    assert [*next(groups)] == [Line(1, b"1"), Line(2, b"2")]
    os.write(writer, b"3\n")
    assert [*next(groups)] == [Line(3, b"33")]
    os.write(writer, b"4")
    os.close(writer)
    assert [*next(groups)] == [Line(4, b"4")]
    assert [*groups] == []
    os.close(reader)


def test_a_stream_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some programs leave their end of a terminal or socket like that, and it is the same for everybody who shares it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    wait = select.select

    def write_when_waited_for(*arguments: Any) -> Any:
        if len(arguments) == 3:  # without a timeout
            os.write(writer, b"1\n2\n")
            os.close(writer)
        return wait(*arguments)

    monkeypatch.setattr("select.select", write_when_waited_for)
    assert [line.text for group in LineGroups(reader) for line in group] == [b"1", b"2"]
    os.close(reader)


def test_a_stream_is_read_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it comes, a group has its limits, and every line is in exactly one."""
    monkeypatch.setattr(lines, "_GROUP_LINES", 100)
    monkeypatch.setattr(lines, "_READ_BYTES", 256)
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as stream:
            stream.writelines(b"%d\n" % number for number in range(5_000))

    thread = threading.Thread(target=write)
    thread.start()
    groups = [[*group] for group in LineGroups(reader)]
    thread.join()
    os.close(reader)
    assert [line.text for group in groups for line in group] == [b"%d" % number for number in range(5_000)]
    assert max(map(len, groups)) < 100 + 256


def test_a_long_line_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes through a pipe in a thousand pieces: were all of it copied for each of them, 64 MB took half a minute."""
    copied: list[int] = []

    class Piece(bytes):
        def __radd__(self, before: bytes) -> bytes:
            copied.append(len(before))
            return bytes(before) + bytes(self)

    pieces = iter([*[Piece(b"x" * 100)] * 1_000, Piece(b"y\nz"), Piece()])
    monkeypatch.setattr("os.read", lambda *_: next(pieces))
    with open(os.devnull, "rb") as nothing:
        groups = LineGroups(nothing.fileno())
    monkeypatch.setattr(groups, "_ready", lambda: True)
    assert [(line.number, len(line.text)) for group in groups for line in group] == [(1, 100_001), (2, 1)]
    assert sum(copied) < 10 * 100_000


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/dev/zero is no list of tasks."""
    monkeypatch.setattr(lines, "_LINE_BYTES_MAX", 1000)
    (tmp_path / "zeros").write_bytes(b"1\n" + bytes(5_000))
    with (tmp_path / "zeros").open("rb") as file, pytest.raises(InvalidTask, match="line 2 is longer"):
        [[*group] for group in LineGroups(file.fileno())]


def test_what_was_read_before_an_error_of_the_input_is_published(monkeypatch: pytest.MonkeyPatch, queue: Path, feed: Feed) -> None:
    """The error comes after the tasks, and the summary counts them."""
    monkeypatch.setattr(lines, "_LINE_BYTES_MAX", 1000)
    monkeypatch.setattr(lines, "_READ_BYTES", 64)
    feed(b"1\n" * 50 + bytes(5_000))
    called = call("publish", "--queue", str(queue))
    assert (called.status, len(called.out.split())) == (65, 50)
    assert len(stored(queue)) == 50
    assert "50 tasks published" in called.err
    assert "line 51 is longer" in called.err


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("typed", "seconds"), [("90", 90), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172_800), ("250ms", 0.25), ("10 m", 600), ("0", 0)]
)
def test_a_wait_is_read_as_it_is_said(typed: str, seconds: float) -> None:
    assert WAIT.convert(typed, None, None) == seconds


@pytest.mark.parametrize("typed", ["soon", "5 weeks", "-3", "", "1h x", "nan", "1 000", "1h30", "90 5m"])
def test_what_is_no_wait_is_refused(typed: str) -> None:
    """Nor is what could be read in two ways: a thousand seconds were one, and an hour and a half was an hour and half a minute."""
    with pytest.raises(click.BadParameter, match="is no wait"):
        WAIT.convert(typed, None, None)


def test_a_moment_has_a_zone_or_is_the_readers_own() -> None:
    assert MOMENT.convert("2026-11-30T14:00Z", None, None) == datetime(2026, 11, 30, 14, tzinfo=UTC)
    assert MOMENT.convert("2026-11-30T14:00", None, None).tzinfo is not None
    assert WAIT_OR_MOMENT.convert("2026-11-30T14:00Z", None, None) == datetime(2026, 11, 30, 14, tzinfo=UTC)
    assert WAIT_OR_MOMENT.convert("10m", None, None) == 600
    with pytest.raises(click.BadParameter, match="is no date and time"):
        MOMENT.convert("tomorrow", None, None)


def test_a_retry_policy_is_a_name_or_json() -> None:
    assert RETRY.convert("exponential", None, None) == Exponential()
    assert RETRY.convert('{"kind":"linear","step_ms":5}', None, None) == Linear(step_ms=5)
    for typed in ("sometimes", '{"kind":"linear","step_ms":-1}'):
        with pytest.raises(click.BadParameter, match="as JSON it reads"):
            RETRY.convert(typed, None, None)


@pytest.mark.parametrize(
    ("count", "published", "said"),
    [
        (1, 1, "1 task was rejected, not stored (number 3, a: no); 1 other is published"),
        (2, 0, "2 tasks were rejected, not stored (first: number 3, a: no); 0 others are published"),
    ],
)
def test_refusals_are_counted_in_plain_words(count: int, published: int, said: str) -> None:
    assert str(TasksRejected((Rejection(2, "a", "no"),), count=count, published=published, duplicates=0)) == said


def test_what_a_queue_took_before_it_was_full_has_its_ids_printed(queue: Path, feed: Feed) -> None:
    """They are on the disk, and what comes of them can be asked only by their ids."""
    queue.mkdir(mode=0o700)
    (queue / "jsonqueue.toml").write_text("tasks_max = 2\n")
    feed(b'"%s"\n' % (b"x" * 600_000) * 4)  # two of them are a batch
    called = call("publish", "--queue", str(queue))
    assert (called.status, called.out.split()) == (65, [*stored(queue)])
    assert "after 4 tasks no more were read, since the queue refuses all" in called.err


@pytest.mark.parametrize("answered", [0, 2])
def test_what_was_acknowledged_before_an_answer_stayed_out_has_its_ids_printed(
    monkeypatch: pytest.MonkeyPatch, queue: Path, feed: Feed, answered: int
) -> None:
    """They were not, so that nobody could ask for their results; of the others it is said which lines they are."""

    def lose(_: Any, tasks: Iterator[Any], *, on_acknowledged: Callable[[list[str]], None], **others: Any) -> None:
        ids = [task.id for task in tasks]
        on_acknowledged(ids[:answered])
        error = PublishUnknown(tuple(ids[answered:]), cause="the broker did not answer within 30 s")
        error.published = answered
        raise error

    monkeypatch.setattr(Publisher, "publish_many", lose)
    feed(b'{"id":"a","data":1}\nno\n{"id":"b","data":1}\n\n{"id":"c","data":1}\n{"id":"d","data":1}\n')
    called = call("publish", "--tasks", "--queue", str(queue))
    assert (called.status, called.out.split()) == (75, ["a", "b"][:answered])
    assert f", lines {5 if answered else 1} to 6 may be published or not, and none after them is, 1 bad line left out." in called.err
    assert f"no acknowledgement for {'c, d' if answered else 'a, b, c and 1 more'}: " in called.err


def test_what_was_acknowledged_before_no_broker_was_there_has_its_ids_printed(
    monkeypatch: pytest.MonkeyPatch, queue: Path, feed: Feed
) -> None:
    """Nothing else is stored, and these are."""

    def fail(_: Any, tasks: Iterator[Any], *, on_acknowledged: Callable[[list[str]], None], **others: Any) -> None:
        on_acknowledged([next(tasks).id])
        raise BrokerUnavailable("q")

    monkeypatch.setattr(Publisher, "publish_many", fail)
    feed(b'{"id":"a","data":1}\n{"id":"b","data":1}\n')
    called = call("publish", "--tasks", "--queue", str(queue))
    assert (called.status, called.out) == (69, "a\n")


def test_the_ids_of_what_is_stored_are_printed_also_beside_refusals_that_are_not_listed(
    monkeypatch: pytest.MonkeyPatch, queue: Path, feed: Feed
) -> None:
    """However many those are: what is printed was acknowledged."""

    def refuse(_: Any, tasks: Iterator[Any], *, on_acknowledged: Callable[[list[str]], None], **others: Any) -> None:
        on_acknowledged([task.id for task in tasks][3:])
        raise TasksRejected((Rejection(0, "a", "no"),), count=3, published=7, duplicates=0)

    monkeypatch.setattr("jsonqueue.client.publisher.Publisher.publish_many", refuse)
    feed(b"1\n" * 10)
    called = call("publish", "--queue", str(queue))
    assert (called.status, len(called.out.split())) == (65, 7)
    assert "7 tasks published" in called.err
    assert "3 bad lines" in called.err
