"""status, list, show, result: printed from queues made up for it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from cli.calls import ESCAPES, NOW_MS, a_queue_of, call, ended, task
from jsonqueue.cli.status import bar_parts
from jsonqueue.core.records import Leased, encode_records
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter, encode_task
from jsonqueue.task import Outcome, TaskIn, TaskStatus
from storage.history import Queue


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands look at the clock once, in one way; here it stands still."""
    frozen = SimpleNamespace(time_ns=lambda: NOW_MS * 1_000_000, sleep=lambda _: None)
    for module in ("listing", "showing", "status", "changing"):
        monkeypatch.setattr(f"jsonqueue.cli.{module}.time", frozen)


SEVERAL = (
    task("a-1", data={"n": 1}),
    task("a-2", TaskStatus.IN_PROGRESS, attempt=1, attempts_max=3, consumer="worker-1@81", started_ms=NOW_MS - 250, token=5),
    task("b-1", TaskStatus.DEAD, priority=7, reason="out of attempts: ValueError: no", attempt=3, attempts_max=3),
    task("b-2", TaskStatus.SCHEDULED, run_at_ms=NOW_MS + 60_000),
    task("b-3", TaskStatus.BLOCKED, after=("a-1",)),
    task("b-4", TaskStatus.COMPLETED, result={"lines": 10}, finished_ms=NOW_MS - 1_000, history=(ended(Outcome.COMPLETED),)),
)


def test_a_list_shows_what_is_worth_knowing_of_each_task(tmp_path: Path) -> None:
    """Piped: plain columns, nothing cut away, no colours."""
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        called = call("--queue", str(queue), "list")
    assert called.status == 0
    assert called.out.splitlines() == [
        "ID   STATUS       PRIO  TRIES    AGE  DETAIL",
        'a-1  pending         0      0  5.0 s  {"n":1}',
        "a-2  in_progress     0    1/3  5.0 s  worker-1@81, for 250 ms",
        "b-1  dead            7    3/3  5.0 s  out of attempts: ValueError: no",
        "b-2  scheduled       0      0  5.0 s  in 1 min",
        "b-3  blocked         0      0  5.0 s  waits for a-1",
        "b-4  completed       0      0  5.0 s  null",
    ]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--status", "dead", "--status", "blocked"], ["b-1", "b-3"]),
        (["--id-prefix", "a-"], ["a-1", "a-2"]),
        (["--priority", "7"], ["b-1"]),
        (["--newest", "--limit", "2"], ["b-4", "b-3"]),
        (["--limit", "1"], ["a-1"]),
        (["--limit", str(2**64), "--status", "dead", "--newest"], ["b-1"]),
        (["--limit", str(2**64), "--id-prefix", "a"], ["a-1", "a-2"]),
        (["--limit", "0"], ["a-1", "a-2", "b-1", "b-2", "b-3", "b-4"]),
    ],
)
def test_a_list_is_filtered(tmp_path: Path, options: list[str], ids: list[str]) -> None:
    """With --json each line is a task as it stands in queue.json."""
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        called = call("list", "--queue", str(queue), "--json", *options)
    assert [json.loads(line)["id"] for line in called.out.splitlines()] == ids


def test_a_list_says_how_many_it_left_out(tmp_path: Path) -> None:
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        assert "4 more tasks" in call("list", "--queue", str(queue), "--limit", "2").err
        assert call("list", "--queue", str(queue), "--id-prefix", "zzz").err == "No tasks.\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", [["list"], ["show", "evil"], ["result", "evil"], ["list", "--json"], ["show", "evil", "--json"]])
def test_nothing_from_a_task_reaches_the_terminal_as_it_is(tmp_path: Path, command: list[str], terminal: bool) -> None:
    """Payload, result, reason, error, consumer: each is somebody else's text. Markup of rich's in it stays text as well."""
    evil = task(
        "evil", TaskStatus.COMPLETED, data={"x": ESCAPES + "[bold red]markup[/]"}, result=ESCAPES, finished_ms=NOW_MS, reason=ESCAPES,
        history=(ended(Outcome.FAILED, error=ESCAPES), ended(Outcome.COMPLETED, attempt=2)),
    )  # fmt: skip
    dead = task("evil-2", TaskStatus.DEAD, reason=ESCAPES)
    with a_queue_of(tmp_path, evil, dead) as queue:
        called = call("--queue", str(queue), *command, terminal=terminal, environment={"NO_COLOR": "1"})
    for text in (called.out, called.err):
        for line in text.split("\n"):
            assert line.replace("\x1b[1m", "").replace("\x1b[0m", "").isprintable(), repr(line)
    assert not any(line.startswith("Error: forged") for line in called.out.splitlines())


def test_a_terminal_gets_a_table_that_fits(tmp_path: Path) -> None:
    """Narrow or wide, no line is longer than the terminal."""
    with a_queue_of(tmp_path, *SEVERAL, task("x" * 60, data="y" * 500)) as queue:
        for columns in (80, 120):
            called = call("list", "--queue", str(queue), terminal=True, columns=columns, environment={"NO_COLOR": "1"})
            assert max(len(line) for line in called.out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= columns


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (100, "id status prio tries age detail"),
        (60, "id status prio tries detail"),
        (45, "id status detail"),
        (38, "id status"),
        (25, "id status"),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns_and_whole_ids(tmp_path: Path, columns: int, headings: str) -> None:
    """An id with its end cut off cannot be typed again; where it is longer than the line, it goes on in the next one."""
    with a_queue_of(tmp_path, *SEVERAL, task("2jbosuiue7mygr-1", data="日本語" * 30)) as queue:
        out = call("list", "--queue", str(queue), terminal=True, columns=columns, environment={"NO_COLOR": "1"}).out
    lines = out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert lines[0].split() == headings.split()
    ids = [line.split()[0] for line in lines[2:] if line.strip()]
    assert "".join(ids) == "".join(shown.id for shown in SEVERAL) + "2jbosuiue7mygr-1"
    assert [*filter(None, (line[-11:].strip() for line in lines[2:] if columns < 40))] == [
        str(shown.status) for shown in (*SEVERAL, SEVERAL[0]) if columns < 40
    ]
    assert all(len(line) <= columns for line in lines)


def test_a_pipe_gets_the_whole_detail(tmp_path: Path) -> None:
    """However long a payload or a reason is: what is piped is searched, not looked at."""
    with a_queue_of(tmp_path, task("long", data="y" * 5_000), task("dead", TaskStatus.DEAD, reason="z" * 900)) as queue:
        listed = call("list", "--queue", str(queue)).out
    assert "y" * 5_000 in listed
    assert "z" * 900 in listed


def test_a_tasks_whole_life_is_shown(tmp_path: Path) -> None:
    """Payload, result, and each attempt with its error, oldest first."""
    lived = task(
        "t", TaskStatus.COMPLETED, data={"url": "x"}, result=[1], finished_ms=NOW_MS - 500, number=12, attempt=2, attempts_max=3,
        history=(
            ended(Outcome.FAILED, error="Traceback:\n  line\nValueError: no"),
            ended(Outcome.COMPLETED, attempt=2, started_ms=NOW_MS - 1_000),
        ),
    )  # fmt: skip
    with a_queue_of(tmp_path, lived) as queue:
        out = call("show", "t", "--queue", str(queue)).out
    assert "as number 12 of this queue" in out
    assert '  "url": "x"' in out
    steps = out.partition("history\n")[2]
    assert "failed after 35 ms, by worker-1@811" in steps
    assert "completed after 35 ms, by worker-2@812" in steps
    assert steps.index("published") < steps.index("attempt 1") < steps.index("ValueError: no") < steps.index("attempt 2")


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (SEVERAL[1], "in progress  attempt 1, worker-1@81, for 250 ms"),
        (SEVERAL[3], "due  in 1 min"),
        (SEVERAL[2], "dead  out of attempts"),
    ],
)
def test_what_has_not_ended_tells_where_it_stands(tmp_path: Path, shown: object, words: str) -> None:
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        assert words in call("show", shown.id, "--queue", str(queue)).out  # type: ignore[attr-defined]


def test_a_task_past_its_retention_is_found_in_the_archive(tmp_path: Path) -> None:
    """The newest archive is asked first; a line that a cut-off checkpoint left behind is none."""
    old = task("old", TaskStatus.COMPLETED, data=1, result="kept", finished_ms=NOW_MS)
    with a_queue_of(tmp_path, task("new")) as queue:
        (queue / "archive").mkdir()
        (queue / "archive" / "2026-10.jsonl").write_bytes(encode_task(old) + b"\n" + encode_task(task("torn", TaskStatus.DEAD)))
        assert "completed, in archive/2026-10.jsonl" in call("show", "old", "--queue", str(queue)).out
        for waiting in ([], ["--wait"], ["--timeout", "5"]):  # a broker, which is asked of others, knows nothing of it
            assert call("result", "old", *waiting, "--queue", str(queue)).out == '"kept"\n'
        missing = call("show", "torn", "--queue", str(queue))
        assert call("show", "\udcff", "--queue", str(queue)).status == 66, "bytes that are no text are an id that is not there"
    assert (missing.status, missing.out) == (66, "")
    assert missing.err.startswith("Error: no task 'torn' in ")


def test_of_an_id_that_came_back_the_last_task_is_shown(tmp_path: Path) -> None:
    """Of those in one archive file, too, where `result` printed what the first of the month came to."""
    lives = [task("nightly", TaskStatus.COMPLETED, result=night, number=night, finished_ms=NOW_MS) for night in (1, 2, 3)]
    with a_queue_of(tmp_path, task("new")) as queue:
        (queue / "archive").mkdir()
        (queue / "archive" / "2026-09.jsonl").write_bytes(encode_task(lives[0]) + b"\n")
        (queue / "archive" / "2026-10.jsonl").write_bytes(encode_task(lives[1]) + b"\n" + encode_task(lives[2]) + b"\n")
        assert call("result", "nightly", "--queue", str(queue)).out == "3\n"
        assert "as number 3 of this queue" in call("show", "nightly", "--queue", str(queue)).out


def test_of_an_id_that_came_back_no_earlier_task_stands_in_the_way(tmp_path: Path) -> None:
    """A damaged line hid the whole one behind it. And where the last one is damaged, that of the month before was shown for it."""
    nights = [encode_task(task("nightly", TaskStatus.COMPLETED, result=night, number=night, finished_ms=NOW_MS)) for night in (1, 2, 3)]
    with a_queue_of(tmp_path, task("new")) as queue:
        (queue / "archive").mkdir()
        (queue / "archive" / "2026-09.jsonl").write_bytes(nights[0] + b"\n")
        october = queue / "archive" / "2026-10.jsonl"
        october.write_bytes(nights[1][:50] + b"\n" + nights[2] + b"\n")
        assert call("result", "nightly", "--queue", str(queue)).out == "3\n"
        october.write_bytes(nights[1] + b"\n" + nights[2][:50] + b"\n")
        called = call("result", "nightly", "--queue", str(queue))
        assert (called.status, called.out) == (74, "")
        assert f"archive/2026-10.jsonl cannot be read at byte {len(nights[1]) + 1}: the line there is no task" in called.err


def test_a_task_is_found_between_its_retention_and_the_next_checkpoint(tmp_path: Path) -> None:
    """It has left the queue, and no archive has it yet: for a large queue that lasts for minutes."""
    files = open_folder(tmp_path, create=True)
    queue = Queue(files)
    queue.publish("a")
    queue.lease("a")
    queue.complete("a")
    queue.retire("a")
    for where in ("past its retention", "in archive/"):
        assert call("result", "a", "--queue", str(tmp_path)).out == '"done"\n'
        assert f"completed, {where}" in call("show", "a", "--queue", str(tmp_path)).out
        queue.checkpoint()
    queue.close()
    files.shut()


@contextlib.contextmanager
def _sector_lost_behind(line: bytes) -> Iterator[Iterator[bytes]]:
    """A file whose first line can be read."""

    def lines() -> Iterator[bytes]:
        yield line
        raise OSError(errno.EIO, "Input/output error")

    yield lines()


def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By file and byte, unless the task is found in another; one that was taken away meanwhile is none."""
    old = encode_task(task("old", TaskStatus.COMPLETED, data=1, result="kept", finished_ms=NOW_MS)) + b"\n"
    with a_queue_of(tmp_path, task("new")) as queue:
        (queue / "archive").mkdir()
        for month in ("08", "09", "10"):
            (queue / "archive" / f"2026-{month}.jsonl").write_bytes(old)
        opened = Path.open

        def open_file(path: Path, *mode: Any, **options: Any) -> Any:
            if path.name == "2026-10.jsonl":
                return _sector_lost_behind(old.replace(b'"old"', b'"odd"'))
            if path.name == "2026-09.jsonl":
                raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
            return opened(path, *mode, **options)

        monkeypatch.setattr(Path, "open", open_file)
        assert "completed, in archive/2026-08.jsonl" in call("show", "old", "--queue", str(queue)).out
        missing = call("show", "none", "--queue", str(queue))
        assert (missing.status, missing.out) == (74, "")
        assert missing.err.startswith(f"Error: archive/2026-10.jsonl cannot be read at byte {len(old)}: Input/output error\nHint:  nothing")


def test_a_line_of_the_archive_that_is_no_task_is_damage(tmp_path: Path) -> None:
    """It was called a bug of ours."""
    with a_queue_of(tmp_path, task("new")) as queue:
        (queue / "archive").mkdir()
        (queue / "archive" / "2026-10.jsonl").write_bytes(b'{"id":"x"}\n{"id":"old","number":"1"}\n')
        called = call("show", "old", "--queue", str(queue))
        assert (called.status, called.out) == (74, "")
        assert "archive/2026-10.jsonl cannot be read at byte 11: the line there is no task" in called.err


@pytest.mark.parametrize(
    ("task_id", "status", "out", "err"),
    [
        ("b-4", 0, '{"lines":10}\n', ""),
        ("b-1", 1, "", "task b-1 is dead: out of attempts"),
        ("a-1", 75, "", "task a-1 is pending: it has no result yet"),
        ("zzz", 66, "", "no task 'zzz'"),
    ],
)
def test_a_result_is_json_or_an_exit_status(tmp_path: Path, task_id: str, status: int, out: str, err: str) -> None:
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        called = call("result", task_id, "--queue", str(queue))
    assert (called.status, called.out) == (status, out)
    assert err in called.err


def test_a_result_of_null_is_a_result(tmp_path: Path) -> None:
    with a_queue_of(tmp_path, task("none", TaskStatus.COMPLETED, finished_ms=NOW_MS)) as queue:
        assert call("result", "none", "--queue", str(queue)).out == "null\n"


def test_waiting_for_a_result_asks_the_broker(tmp_path: Path) -> None:
    """With a timeout the handle is asked for as long; its answer is printed."""
    asked = []

    class Handle:
        def __init__(self, *given: object) -> None:
            asked.append(given)

        def result(self, timeout: float | None) -> object:
            asked.append(timeout)
            return {"done": True}

    with a_queue_of(tmp_path, *SEVERAL) as queue, mock.patch("jsonqueue.client.handle.TaskHandle", Handle):
        assert call("result", "a-1", "--timeout", "2", "--queue", str(queue)).out == '{"done":true}\n'
    assert asked == [(tmp_path, "a-1"), 2.0]


def test_status_counts_what_is_there(tmp_path: Path) -> None:
    """As JSON, for a script, from the files alone."""
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        (queue / "published-1-1.jsonl").write_text("x" * 100)
        queue_json = (queue / "queue.json").stat().st_size
        seen = json.loads(call("status", "--json", "--queue", str(queue)).out)
    assert not seen["running"]
    assert seen["tasks"] == 6
    assert seen["by_status"] == {
        "blocked": 1, "scheduled": 1, "pending": 1, "in_progress": 1, "completed": 1, "dead": 1, "cancelled": 0,
    }  # fmt: skip
    assert seen["published_last_minute"] == 6
    assert seen["completed_last_minute"] == 1
    assert seen["oldest_pending_ms"] == NOW_MS - 5_000
    assert seen["files"]["log_bytes"] == 100
    assert seen["files"]["queue_json_bytes"] == queue_json


@pytest.mark.skipif(sys.platform == "darwin", reason="all names are UTF-8 there")
def test_status_is_json_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """It cannot be served under such a name, and can be looked at."""
    with a_queue_of(tmp_path / "q\udcff", *SEVERAL) as queue:
        seen = call("status", "--json", "--queue", str(queue))
    assert (seen.status, json.loads(seen.out)["queue_dir"]) == (0, f"{tmp_path}/q\\udcff"), seen.err


@pytest.mark.parametrize("terminal", [False, True])
def test_status_tells_a_person_the_same(tmp_path: Path, terminal: bool) -> None:
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        out = call("status", "--queue", str(queue), terminal=terminal, environment={"NO_COLOR": "1"}).out
    for words in ("not running", "waiting for 5.0 s", "6 published (0.1/s), 1 completed", "queue.json"):
        assert words in out
    assert ("╭" in out) is terminal


@pytest.mark.parametrize(("columns", "long"), [(120, 60), (66, 60), (46, 40)])
def test_the_bar_of_status_is_as_long_as_there_is_room(tmp_path: Path, columns: int, long: int) -> None:
    """Cut to the terminal it would show less of the last statuses than there is, or nothing."""
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        out = call("status", "--queue", str(queue), terminal=True, columns=columns).out
    assert (out.count("━"), "…" in out.partition("━")[2]) == (long, False)


def test_a_watch_that_is_terminated_gives_the_terminal_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout 60 jsonqueue status --watch` left it on the other screen, without a cursor."""
    terminating = SimpleNamespace(time_ns=lambda: NOW_MS * 1_000_000, sleep=lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr("jsonqueue.cli.status.time", terminating)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever comes of it, it ends no tests
    try:
        with a_queue_of(tmp_path / "q", task("a")) as queue:
            watched = call("status", "--watch", "--queue", str(queue), terminal=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert watched.status == 143
    assert watched.out.index("\x1b[?1049h") < watched.out.index("\x1b[?1049l")
    assert watched.out.index("\x1b[?25l") < watched.out.index("\x1b[?25h")


def test_parts_of_the_bar_are_in_proportion_and_none_is_missing() -> None:
    """One task of a million shows, too; the longest part makes room for it."""
    pending, dead, cancelled = TaskStatus.PENDING, TaskStatus.DEAD, TaskStatus.CANCELLED
    assert bar_parts({pending: 1_000_000, dead: 1, cancelled: 0}, 40) == {pending: 39, dead: 1}
    assert bar_parts({pending: 5, dead: 5, cancelled: 5}, 40) == {pending: 14, dead: 13, cancelled: 13}
    assert bar_parts({pending: 3, dead: 1}, 40) == {pending: 30, dead: 10}


def test_dead_letters_are_listed_alone(tmp_path: Path) -> None:
    with a_queue_of(tmp_path, *SEVERAL) as queue:
        assert [line.split()[0] for line in call("dead", "list", "--queue", str(queue)).out.splitlines()] == ["ID", "b-1"]
        assert "out of attempts" in call("dead", "show", "b-1", "--queue", str(queue)).out
        alive = call("dead", "show", "a-1", "--queue", str(queue))
    assert (alive.status, alive.err.splitlines()[0]) == (66, "Error: task a-1 is no dead letter, but pending")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("result b-1", "jsonqueue show b-1"),
        ("dead show a-1", "jsonqueue show a-1"),
        ("show nope", "jsonqueue list"),
    ],
)
def test_a_hint_can_be_typed_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, hint: str) -> None:
    """It names the queue that was asked, unless that is the default, and sends nobody to where the command has looked just now."""
    for folder, named in (("my queue", " --queue 'my queue'"), ("queue_data", "")):
        with a_queue_of(tmp_path / folder, *SEVERAL):
            monkeypatch.chdir(tmp_path)
            called = call("--queue", folder, *command.split())
        assert called.err.splitlines()[1].endswith(f": {hint}{named}")
        assert "archive/" not in called.err


def test_looking_makes_no_queue(tmp_path: Path) -> None:
    """A folder that is not there, or holds no queue, is an answer, and stays as it is."""
    commands = ("status", "list", "show x", "result x", "dead list", "dead replay --all", "verify", "repair", "checkpoint", "cancel x")
    for command in map(str.split, commands):
        for folder in (tmp_path / "nowhere", tmp_path):
            called = call("--queue", str(folder), *command)
            assert called.status == 66, command
            assert "--queue DIR names another folder" in called.err
    assert not [*tmp_path.iterdir()]


def test_a_queue_without_its_queue_json_is_damaged_and_not_absent(tmp_path: Path) -> None:
    """After a clean stop nothing is left but the generation before: each command says what is missing, and repair mends it."""
    queue = tmp_path / "queue"
    for task_id in ("a", "b"):
        assert call("--queue", str(queue), "publish", "--id", task_id, "1").status == 0
        assert call("--queue", str(queue), "checkpoint").status == 0
    (queue / "queue.json").unlink()
    for command in ("status", "list", "show a", "result a", "dead list", "checkpoint", "publish 1"):
        called = call("--queue", str(queue), *command.split())
        assert (called.status, "queue.json is damaged" in called.err, "jsonqueue repair" in called.err) == (65, True, True), command
    called = call("--queue", str(queue), "verify")
    assert called.status == 1
    assert called.out.startswith("DAMAGE  queue.json, byte 0: it is missing, though the queue had one")
    assert call("--queue", str(queue), "repair").status == 0
    assert [task["id"] for task in json.loads((queue / "queue.json").read_bytes())["tasks"]] == ["a", "b"]
    assert call("--queue", str(queue), "verify").out == "All is well, 2 tasks.\n"


def test_what_a_newer_jsonqueue_wrote_is_not_called_damaged(tmp_path: Path) -> None:
    """Nothing is wrong with it, and nothing of it is checked: only a newer jsonqueue can."""
    (tmp_path / "q").mkdir(mode=0o700)
    (tmp_path / "q" / "queue.json").write_text('{"format":"jsonqueue","version":7}')
    for command in ("verify", "repair"):
        called = call("--queue", str(tmp_path / "q"), command)
        assert called.status == 1
        first, *_, last = called.out.splitlines()
        assert first.startswith("NEWER   queue.json, byte 0: queue.json is in format version 7, this jsonqueue reads up to version 1")
        assert last == "Written by a newer jsonqueue, and not checked."


_PEAK = """
import sys
from jsonqueue.cli import app
status = app.run(sys.argv[1:])
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, file=sys.stderr)
"""


def _large_queue(folder: Path, tasks: int) -> Path:
    """So many tasks in queue.json, and a hundred that something happened to since."""
    files = MemoryFiles()
    writer = QueueWriter(files, QUEUE, QueueHeader(last_task=tasks))
    for number in range(1, tasks + 1):
        writer.add(b'{"id":"t-%d","number":%d,"status":"pending","published_ms":1,"data":"%b"}' % (number, number, b"x" * 100), 1)
    writer.finish()
    published, progress = (LogWriter.open(files, kind) for kind in LogKind)
    published.append(encode_records([TaskIn(id="new", data=1)]), at_ms=1, first_task=tasks + 1)
    leased = [f"t-{number}" for number in range(1, tasks, tasks // 100)]
    progress.append(encode_records([Leased("worker@1", 1, leased)]), at_ms=1, after=published.position)
    folder.mkdir(mode=0o700)
    for name in files.list():
        (folder / name).write_bytes(files.get(name))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell a process its peak")
def test_a_large_queue_takes_no_more_memory_to_look_at(tmp_path: Path) -> None:
    """200,000 tasks, 36 MB: as much as 2,000 tasks, and some blocks of a mebibyte."""
    few, many = _large_queue(tmp_path / "few", 2_000), _large_queue(tmp_path / "many", 200_000)
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # which would take memory, and long
    for command in (["status"], ["list", "--newest"], ["show", "t-1999"], ["verify"]):
        peaks = []
        for queue in (few, many):
            line = [sys.executable, "-c", _PEAK, "--queue", str(queue), *command]
            done = subprocess.run(line, env=unmeasured, capture_output=True, text=True, check=True)
            peaks.append(int(done.stderr.splitlines()[-1]))
        assert peaks[1] - peaks[0] < 24 * 1024, (command, peaks)  # loaded, they take 100 MB
