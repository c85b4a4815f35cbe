"""``jsonqueue publish``: one task from the command line, or a stream of them from standard input."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec
import orjson
from msgspec import Raw

from jsonqueue.cli.app import command, terminated_as_interrupted
from jsonqueue.cli.console import Console, OutputFailed, Settings
from jsonqueue.cli.lines import Line, LineGroups
from jsonqueue.cli.live import LiveLine, bar
from jsonqueue.cli.options import MOMENT, RETRY, WAIT, WAIT_OR_MOMENT, typed
from jsonqueue.cli.text import clip, count, duration, plural, printable, rate
from jsonqueue.errors import InvalidTask, JsonQueueError, PublishUnknown, TasksRejected
from jsonqueue.task import StoredTaskIn, TaskIn

if TYPE_CHECKING:
    from jsonqueue.client.publisher import Publisher
    from jsonqueue.retry import RetryPolicy

__all__ = ["Stream", "publish"]

_COMPLAINTS_MAX = 20
_TOO_DEEP = "nested deeper than any queue takes (depth_max is at most 200)"

_as_raw = msgspec.json.Decoder(Raw).decode
_as_task = msgspec.json.Decoder(StoredTaskIn).decode


@command("publish", short_help="Put tasks into the queue: one from the command line, or many from standard input.")
@click.argument("data", required=False)
@click.option("--text", is_flag=True, help="DATA is a plain string, not JSON.")
@click.option("--tasks", is_flag=True, help='Each input line is a whole task: {"id": …, "data": …, "priority": …}.')
@click.option("--id", "task_id", help="Name of the task; publishing it again makes no second one.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher runs first.")
@click.option("--delay", type=WAIT, help="Run it after this wait: 90, 1.5h, 2d.")
@click.option("--run-at", type=MOMENT, help="Run it not before this moment: 2026-11-30T14:00.")
@click.option("--deadline", type=WAIT_OR_MOMENT, help="Do not start it after this wait or moment; it is dead then.")
@click.option("--attempts-max", type=click.IntRange(min=1), help="How often it may be tried.  [default: the queue's, 3]")
@click.option("--retry", type=RETRY, help="The wait between tries: exponential, linear, never, or a policy as JSON.")
@click.option("--after", multiple=True, metavar="ID", help="Run it only when this task is complete (repeatable).")
@click.option("--quiet", is_flag=True, help="Do not print the ids.")
def publish(settings: Settings, data: str | None, text: bool, tasks: bool, task_id: str | None, quiet: bool, **options: Any) -> int:
    """Put tasks into the queue. DATA is one payload as JSON; without it, or with -, each line of standard input is one.

    Prints the id of each task once it is on the disk; of many lines typed or piped at a terminal, how many they were. With no broker
    running the task is stored all the same, and runs when brokers start.

    With --tasks each line is an object with the task's data, and whichever of these it has: id, priority, run_at_ms and deadline_ms
    (milliseconds since 1970, UTC), attempts_max, retry (such as {"kind":"linear","step_ms":1000,"cap_ms":60000}), after (a list of ids).
    Each line brings its own options; those of the command line are refused beside --tasks.

    \b
    jsonqueue publish '{"url": "https://example.org"}' --priority 5
    jsonqueue publish --text 'just a string' --delay 10m
    jsonqueue publish --quiet < events.jsonl
    """
    from jsonqueue.client.publisher import Publisher

    given = Options(**options)
    if tasks:
        _refuse_options()
    if task_id is not None:
        _check_id(task_id)
    with Publisher(settings.queue_dir) as publisher:
        if data is not None and data != "-":
            if tasks:
                raise click.UsageError("--tasks reads standard input: leave DATA out")
            return _publish_one(settings.console, publisher, _payload(data, text=text), given, task_id=task_id or "", quiet=quiet)
        if text or task_id is not None:
            raise click.UsageError("--text and --id go with DATA; for many tasks with ids, pipe whole tasks in with --tasks")
        if sys.stdin is None or (sys.stdin.isatty() and data is None):
            raise click.UsageError("nothing to publish: give DATA, pipe JSON Lines in, or use - to type them")
        stream = Stream(settings.console, publisher, given, whole_tasks=tasks, quiet=quiet)
        with terminated_as_interrupted():
            return stream.run(LineGroups(sys.stdin.fileno()))


_IN_A_LINE = {
    "priority": "priority", "delay": "run_at_ms", "run_at": "run_at_ms", "deadline": "deadline_ms", "attempts_max": "attempts_max",
    "retry": "retry", "after": "after",
}  # fmt: skip
"""Option → what says it in a line of ``--tasks``."""


def _refuse_options() -> None:
    """Beside ``--tasks`` they would count for nothing."""
    for option, written in typed().items():
        if name := _IN_A_LINE.get(option):
            raise click.UsageError(
                f'{written} does not go with --tasks, whose lines bring their own options: write "{name}" into the lines'
            )


def _check_id(task_id: str) -> None:
    """An empty one, too: a script whose variable is empty means no task of a name that it will never know."""
    from jsonqueue.client.intake import check_id

    check_id(task_id)


@dataclass(frozen=True)
class Options:
    """What applies to every task of this command."""

    priority: int = 0
    delay: float | None = None
    run_at: datetime | None = None
    deadline: float | datetime | None = None
    attempts_max: int | None = None
    retry: RetryPolicy | None = None
    after: tuple[str, ...] = ()

    def described(self, data: Any, *, task_id: str = "") -> TaskIn[Any]:
        """The task with these options."""
        from jsonqueue.client.intake import describe

        return describe(
            data, now_ms=time.time_ns() // 1_000_000, id=task_id, priority=self.priority, delay=self.delay, run_at=self.run_at,
            deadline=self.deadline, attempts_max=self.attempts_max, retry=self.retry, after=self.after,
        )  # fmt: skip


def _payload(data: str, *, text: bool) -> orjson.Fragment:
    # What an error of the decoder says is told, and what DATA says is not: standard error may be a log that others read.
    try:
        return orjson.Fragment(msgspec.json.encode(data)) if text else _compact(data.encode())
    except RecursionError:
        raise InvalidTask(f"DATA is {_TOO_DEEP}") from None
    except UnicodeEncodeError:
        raise InvalidTask("DATA is not UTF-8, as all text in JSON is", hint="what is no text can be published as base64, say") from None
    except msgspec.DecodeError as error:
        raise InvalidTask(
            f"DATA is not JSON: {error}",
            hint="""quote JSON for the shell: '{"key": "value"}'; or, for a plain string: jsonqueue publish --text 'a plain string'""",
        ) from None


def _compact(text: bytes) -> orjson.Fragment:
    """JSON as it was written, figures untouched, without the space between its tokens. Raises if it is not JSON."""
    _as_raw(text)
    return orjson.Fragment(msgspec.json.format(text.strip(), indent=-1))


def _publish_one(console: Console, publisher: Publisher, data: Any, options: Options, *, task_id: str, quiet: bool) -> int:
    handle = publisher.publish(options.described(data, task_id=task_id))
    try:
        if console.as_json and not quiet:
            console.json({"id": handle.id, "duplicate": handle.duplicate})
        elif not quiet:
            console.line(handle.id)
    except OutputFailed as error:
        raise _unprinted(error, [handle.id]) from error
    if handle.duplicate:
        console.note(f"The queue holds task {handle.id} already; nothing was added.")
    return 0


def _unprinted(error: OutputFailed, ids: list[str]) -> OutputFailed:
    """The same failure, with what is published all the same."""
    which = "task " + ids[0] if len(ids) == 1 else f"{plural(len(ids), 'task')} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
    is_are = "is" if len(ids) == 1 else "are"
    return OutputFailed(
        error.why, done=f"{which} {is_are} published all the same", hint="published again without an id, it would run twice"
    )


@dataclass
class Stream:
    """Publishes lines as they come and keeps the tally."""

    console: Console
    publisher: Publisher
    options: Options
    whole_tasks: bool = False
    quiet: bool = False
    published: int = 0
    duplicates: int = 0
    bad: int = 0
    _answered: int = 0
    """Of the group that is on its way."""
    _cut_off: int = 0
    """Of the group that was cut off: answered, and not known how."""
    _doubtful: str = ""
    """Which lines were sent, and have no answer."""
    _began: float = field(default_factory=time.monotonic)
    _error: Exception | None = None

    def run(self, groups: LineGroups) -> int:
        """Publish all lines. A bad one is named by its number and left out; the others are published. 65 if there was one."""
        with LiveLine(lambda: self._progress(groups), watched=self.console.watched):
            try:
                for group in groups:
                    self._publish(group)
            except (JsonQueueError, OSError, KeyboardInterrupt, SystemExit):
                self._summary()
                raise
        self._summary()
        return InvalidTask.exit_status if self.bad else 0

    def _publish(self, group: Iterator[Line]) -> None:
        numbers = array("Q")
        drawn: list[str] = []
        ids: list[str] = []
        """Of what is acknowledged: whatever becomes of the others, they are printed."""
        try:
            done = self.publisher.publish_many(
                self._tasks(group, numbers, drawn), on_progress=self._on_progress, on_acknowledged=ids.extend
            )
            self.published += done.published
            self.duplicates += done.duplicates
        except TasksRejected as error:
            self._refused(error, numbers)
        except PublishUnknown as error:
            self.published += error.published
            self._error = error
            first, last = (numbers[drawn.index(error.task_ids[end])] for end in (0, -1))
            self._doubtful = f"lines {first:,} to {last:,} may be published or not, and none after them is"
        except BaseException:
            self._cut_off = self._answered
            self._print_ids(ids)
            raise
        finally:
            self._answered = 0
        self._print_ids(ids)
        if self._error:
            raise self._error

    def _tasks(self, group: Iterator[Line], numbers: array[int], drawn: list[str]) -> Iterator[TaskIn[Any]]:
        """The good lines as tasks. An error of the input ends the group, so that what was read before is published all the same."""
        from jsonqueue.client.identity import IdSource

        fresh = IdSource().fresh
        model = self.options.described(None)
        try:
            for line in group:
                task = self._task(line, model, fresh)
                if task is not None:
                    numbers.append(line.number)
                    drawn.append(task.id)
                    yield task
        except (InvalidTask, OSError) as error:
            self._error = error

    def _task(self, line: Line, model: TaskIn[Any], fresh: Callable[[], str]) -> TaskIn[Any] | None:
        try:
            if not self.whole_tasks:
                return _like(model, fresh(), _compact(line.text))
            given = _as_task(line.text)
            return _like(given, given.id or fresh(), _compact(bytes(given.data)))
        except msgspec.MsgspecError as error:
            fields = f"; a task has {', '.join(TaskIn.__struct_fields__)}" if "unknown field" in str(error) else ""
            self._complain(line.number, f"not {'a task' if self.whole_tasks else 'JSON'}: {error}{fields}")
            return None
        except RecursionError:
            self._complain(line.number, _TOO_DEEP)
            return None

    def _on_progress(self, answered: int) -> None:
        self._answered = answered

    def _refused(self, error: TasksRejected, numbers: array[int]) -> None:
        """Count what was refused. Where the queue takes nothing more, that ends the command."""
        self.published += error.published
        self.duplicates += error.duplicates
        for rejection in error.rejected:
            self._complain(numbers[rejection.index], rejection.reason)
        self.bad += error.count - len(error.rejected)  # only so many are listed
        if error.stopped_after is not None:
            self._error = error

    def _complain(self, number: int, why: str) -> None:
        self.bad += 1
        if self.bad <= _COMPLAINTS_MAX:
            self.console.note(f"line {number:,}: {printable(clip(why, 300))}")

    def _print_ids(self, ids: list[str]) -> None:
        # A person at a terminal gets the summary: a million ids would only push it out of sight.
        if not ids or self.quiet or self.console.person:
            return
        try:
            self.console.line("\n".join(f'{{"id":"{task_id}"}}' for task_id in ids) if self.console.as_json else "\n".join(ids))
        except OutputFailed as error:
            raise _unprinted(error, ids) from error

    def _progress(self, groups: LineGroups) -> str:
        done = self.published + self.duplicates + self._answered
        speed = rate(done / max(0.001, time.monotonic() - self._began))
        share = f"{bar(groups.bytes_read / groups.bytes_total, 30)} " if groups.bytes_total else ""
        return f"{share}{plural(done, 'task')} published, {speed}" + (f", {count(self.bad)} bad" if self.bad else "")

    def _summary(self) -> None:
        took = time.monotonic() - self._began
        parts = [f"{plural(self.published, 'task')} published in {duration(took * 1000)} ({rate(self.published / max(took, 0.001))})"]
        if self._cut_off:
            parts.append(f"{count(self._cut_off)} more answered before it was cut off (published, unless refused or known)")
        if self._doubtful:
            parts.append(self._doubtful)
        if self.duplicates:
            parts.append(f"{plural(self.duplicates, 'duplicate')} left out")
        if self.bad:
            parts.append(f"{plural(self.bad, 'bad line')} left out")
        self.console.note(", ".join(parts) + ".")


def _like(model: TaskIn[Any], task_id: str, data: Any) -> TaskIn[Any]:
    """A task with another's options. (Much of the time of a million lines is spent here: no loop over the fields.)"""
    return TaskIn(
        id=task_id, data=data, priority=model.priority, run_at_ms=model.run_at_ms, deadline_ms=model.deadline_ms,
        attempts_max=model.attempts_max, retry=model.retry, after=model.after,
    )  # fmt: skip
