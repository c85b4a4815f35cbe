"""``jsonqueue work``: a consumer process that runs a Python function, or any program."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from jsonqueue.cli.app import command
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.live import LiveLine
from jsonqueue.cli.options import LIMIT, SIZE
from jsonqueue.cli.serving import Rates
from jsonqueue.cli.text import count, duration, plural, rate
from jsonqueue.client.limits import LIMIT_MAX
from jsonqueue.errors import BrokerUnavailable, InvalidHandler, InvalidTask

if TYPE_CHECKING:
    from jsonqueue.client.consumer import Consumer
    from jsonqueue.client.holdings import ConsumerStats

__all__ = ["UntilEmpty", "work"]

_PATIENCE_S = 30.0
_SOON_MS = 60_000
_SHELL_SIGNS = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


def _countable(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """The upper end of the range: in a help it would only be a long figure."""
    if value is not None and value > LIMIT_MAX:
        raise click.BadParameter(f"{value} is more than a kernel can count", ctx, param)
    return value


@command("work", short_help="Run tasks with a Python function, or with any program.")
@click.argument("handler", metavar="MODULE:FUNCTION", required=False)
@click.option("--exec", "program", metavar="COMMAND", help="Run this program for each task, with the task's JSON on its standard input.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many tasks at once.")
@click.option("--name", help="What the consumer is called in the histories of its tasks.")
@click.option("--timeout", type=LIMIT, help="End a handler that takes longer than this, by SIGTERM, then SIGKILL; its attempt has failed.")
@click.option("--isolate", is_flag=True, help="Run the function in child processes, so that a crash there hurts nobody here.")
@click.option("--memory", "memory_bytes", type=SIZE, help="Address space that each process of a handler may take: 512M, 2G.")
@click.option("--cpu", "cpu_s", type=click.IntRange(min=1), callback=_countable, metavar="SECONDS", help="CPU time that a task may take.")
@click.option("--open-files", type=click.IntRange(min=1), callback=_countable, help="Files that each process of a handler may hold open.")
@click.option("--processes", type=click.IntRange(min=1), callback=_countable, help="Processes and threads of your user, all together.")
@click.option("--until-empty", is_flag=True, help="End when nothing is left to do; what is due within a minute is waited for.")
def work(settings: Settings, handler: str | None, program: str | None, until_empty: bool, **options: Any) -> int:
    """Run tasks with a Python function (looked for in the current folder, too), or with any program.

    A function gets the task and returns its result; raising is a failure. A program gets the task's JSON on standard input, and exit status
    0 means done, 75 try again later, anything else failed. Its output is the result: the value if it is JSON, else a string; null if there
    is none. No shell is involved (--exec "sh -c '…'" starts one).

    --memory, --cpu, --open-files and --processes put the handler into processes of its own, with these limits; a task that runs into one
    has failed, and says into which. They contain mistakes, and are no sandbox.

    Waits for a broker if none is running. SIGINT, SIGTERM or a closed terminal drains: what is running may end, the rest goes back. A
    second signal ends at once: what was running is lost with it, and handed out again while it has attempts left.

    \b
    jsonqueue work thumbnails:make --concurrency 4 --timeout 30
    jsonqueue work --exec 'jq .data.url' --until-empty
    """
    if (handler is None) == (program is None):
        both = "a MODULE:FUNCTION and --exec were both given: name one of the two, not both"
        raise click.UsageError(both if handler else "name a MODULE:FUNCTION, or a program with --exec (one of the two)")
    if program is not None and options["isolate"]:
        raise click.UsageError("--isolate goes with a MODULE:FUNCTION: a program has a process of its own in any case")
    consumer = _consumer(settings, handler, program, **options)
    console = settings.console
    began = time.monotonic()
    ending = UntilEmpty(consumer) if until_empty else None
    if ending:
        ending.start()
    rates = Rates()
    try:
        with LiveLine(lambda: _live(consumer, rates), watched=console.watched, every_s=0.5, shared=True):
            consumer.run()
    finally:
        _summary(console, consumer, time.monotonic() - began)
    if ending and ending.error:
        raise ending.error
    return 0


def _consumer(settings: Settings, handler: str | None, program: str | None, **options: Any) -> Consumer:
    from jsonqueue.client.consumer import Consumer
    from jsonqueue.client.limits import Limits
    from jsonqueue.client.program import Program

    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    if options["name"] is not None:
        _check_name(options["name"])
    given = Program(program) if program is not None else handler
    assert given is not None
    if program is not None and _SHELL_SIGNS.intersection(_words(program)):
        raise InvalidHandler(f"--exec {program!r} needs a shell, and none is involved", hint="""start one: --exec "sh -c '…'\"""")
    bounds = {name: most for name in Limits.__struct_fields__ if (most := options.pop(name)) is not None}
    return Consumer(settings.queue_dir, given, limits=Limits(**bounds) if bounds else None, **options)


def _words(program: str) -> list[str]:
    """As ``shlex.split``, and with a ``;`` that nothing quotes as a word of its own: it follows its word without a space."""
    words = shlex.shlex(program, posix=True, punctuation_chars=";")
    words.whitespace_split, words.commenters = True, ""
    return list(words)


def _check_name(name: str) -> None:
    from jsonqueue.client.intake import check_id

    try:
        check_id(name)
    except InvalidTask as error:
        raise InvalidTask(error.message.replace("invalid id", "invalid --name", 1), hint=error.hint.replace("an id", "a name", 1)) from None


def _live(consumer: Consumer, rates: Rates) -> str:
    stats = consumer.stats
    speed = rates.since_last({"completed": stats.completed}, time.monotonic_ns() // 1_000_000)["completed"]
    parts = [consumer.name, f"{count(stats.completed)} completed ({rate(speed)})"]
    parts += _unsuccessful(stats)
    if consumer.state == "waiting":
        parts.append("waiting for a broker")
    elif consumer.state == "draining":
        parts.append(f"stopping, {plural(consumer.running, 'task')} still running" if consumer.running else "stopping")
    return " · ".join(parts)


def _unsuccessful(stats: ConsumerStats) -> Iterator[str]:
    """A task that its handler cancelled has ended as its handler wished, and has not failed."""
    if stats.failed > stats.cancelled:
        yield plural(stats.failed - stats.cancelled, "failed attempt")
    if stats.cancelled:
        yield f"{count(stats.cancelled)} cancelled"


def _summary(console: Console, consumer: Consumer, seconds: float) -> None:
    stats = consumer.stats
    if console.as_json:
        failed = stats.failed - stats.cancelled
        told = {
            "completed": stats.completed,
            "failed": failed,
            "cancelled": stats.cancelled,
            "returned": stats.returned,
            "stale": stats.stale,
        }
        console.json(told)
        return
    parts = [f"{plural(stats.completed, 'task')} completed in {duration(seconds * 1000)}"]
    parts += _unsuccessful(stats)
    if stats.returned:
        parts.append(f"{count(stats.returned)} given back unstarted")
    if stats.stale:
        parts.append(f"{plural(stats.stale, 'outcome')} too late to count")
    console.note(", ".join(parts) + ".")


class UntilEmpty:
    """Stops a consumer when nothing is left to do: nothing ready, in progress (with anybody), or due within a minute.

    The broker's counters are asked first, because they cost nothing; only when these say that it is idle are the files looked into.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.error: Exception | None = None
        """Why it looks no more, if that is not because all is done."""
        self._consumer = consumer
        self._thread = threading.Thread(target=self._run, name="until-empty", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - whatever it is: a consumer that nobody stops would work on for ever
            self.error = error
        self._consumer.stop(None)

    def _look(self) -> None:
        """Return when nothing is left to do."""
        silent_since = time.monotonic()
        pause = 0.1
        while True:
            time.sleep(pause)
            try:
                idle = self._idle()
                silent_since = time.monotonic()
            except BrokerUnavailable:
                idle = False
                if time.monotonic() - silent_since > _PATIENCE_S:
                    raise
            if idle:
                began = time.monotonic()
                if self._empty():
                    return
                # Looking into the files of a large queue takes its time: at most a tenth of it goes into looking.
                pause = max(0.2, 10 * (time.monotonic() - began))

    def _idle(self) -> bool:
        from jsonqueue.channel.registration import operate

        for broker in operate(self._consumer.queue_dir, "status", timeout=5.0).status.brokers:
            if "in_progress" in broker.counters:
                return not broker.counters["in_progress"] and not broker.counters.get("ready", 0)
        return False

    def _empty(self) -> bool:
        from jsonqueue.cli.reading import looking
        from jsonqueue.task import TaskStatus

        soon = time.time_ns() // 1_000_000 + _SOON_MS
        with looking(self._consumer.queue_dir) as view:
            return not any(
                task.status in {TaskStatus.PENDING, TaskStatus.IN_PROGRESS}
                or (task.status is TaskStatus.SCHEDULED and task.run_at_ms <= soon)
                for task in view.glances()
            )
