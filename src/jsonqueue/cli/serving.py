"""``jsonqueue serve``, ``checkpoint`` and ``stop``: the brokers, and what an operator asks of them."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jsonqueue.cli.app import command, to_nowhere
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.live import LiveLine
from jsonqueue.cli.options import Seconds
from jsonqueue.cli.reading import NoQueue, require_queue
from jsonqueue.cli.redaction import settings_in
from jsonqueue.cli.text import count, duration, plural, printable, rate, size
from jsonqueue.errors import BrokerUnavailable, JsonQueueError, ManagerRunning, command_for

if TYPE_CHECKING:
    from jsonqueue.broker.manager import BrokerManager
    from jsonqueue.channel.registration import ManagerStatus
    from jsonqueue.config import Config

__all__ = ["Rates", "checkpoint", "serve", "settings_of", "stop"]


@command("serve", short_help="Start the brokers of a queue and serve until stopped.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Override a setting for this run (repeatable).")
@click.option("--grace", type=Seconds(), default=10.0, show_default=True, help="Seconds to wait at the end for connected consumers.")
def serve(settings: Settings, assignments: tuple[str, ...], grace: float) -> None:
    """Start the brokers of a queue and serve until SIGINT, SIGTERM, a closed terminal, or `jsonqueue stop`.

    The first signal drains: nothing more is handed out, and what consumers hold may be finished. A second one stops at once; then they tell
    what they did to whoever serves next.

    Makes the folder if it does not exist. A second serve on the same folder exits with status 75 and writes nothing.
    """
    from jsonqueue.broker.manager import BrokerManager

    config = settings_of(settings.queue_dir, assignments) if assignments else None
    manager = BrokerManager(settings.queue_dir, config, grace=grace, what="jsonqueue serve")
    console = settings.console
    with ExitStack() as shown:

        def announce() -> None:
            try:
                _announce(console, manager.status())
            except BrokenPipeError:  # Whoever wanted to read it is gone; whoever wants the queue served is not.
                to_nowhere(sys.stdout)
            rates = Rates()
            shown.enter_context(LiveLine(lambda: _live(manager, rates), watched=console.watched, every_s=1.0))

        try:
            manager.serve_forever(on_ready=announce)
        finally:
            manager.stop()
    _farewell(console, settings.queue_dir)


def settings_of(queue_dir: Path, assignments: tuple[str, ...]) -> Config:
    """The queue's own settings with the ``name=value`` pairs of a command line laid over them; values as TOML, or as plain words."""
    import tomllib

    from jsonqueue.config import config_from

    given: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment!r}: expected NAME=VALUE, such as --set lease_ms=60000")
        try:
            given[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            given[name.strip()] = value.strip()
    return config_from(given, source="--set", base=settings_in(queue_dir))


def _announce(console: Console, status: ManagerStatus) -> None:
    if console.as_json:
        import msgspec

        console.json(msgspec.to_builtins(status))
    elif console.person:
        console.show(_panel(status))
    else:
        pids = ", ".join(f"{broker.role.replace('_', ' ')} {broker.pid}" for broker in status.brokers)
        console.line(f"serving {printable(status.queue_dir)}: manager {status.pid}, {pids}")


def _panel(status: ManagerStatus) -> Any:
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    here = _typed(status.queue_dir)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("queue", Text(printable(status.queue_dir), style="bold"))
    grid.add_row("manager", Text(f"pid {status.pid}"))
    for broker in status.brokers:
        grid.add_row(broker.role.replace("_", " "), Text(f"pid {broker.pid}, epoch {broker.epoch}"))
    grid.add_row("durability", Text(_durability(status.durability)))
    grid.add_row("settings", Text(_changed(status.config)))
    grid.add_row("", "")
    for label, line in (
        ("publish", f'jsonqueue{here} publish \'{{"url": "https://example.org"}}\''),
        ("consume", f"jsonqueue{here} work --exec 'jq .data.url'"),
        ("look", f"jsonqueue{here} status"),
        ("stop", f"Ctrl-C here, or jsonqueue{here} stop"),
    ):
        grid.add_row(label, Text(line, style="cyan"))
    title = Text.assemble((" jsonqueue ", "bold"), ("serving ", "green"))
    return Panel(grid, title=title, title_align="left", box=box.ROUNDED, border_style="dim", padding=(1, 2))


def _typed(queue_dir: str) -> str:
    """The option that names this queue on a command line typed in the current folder; none if it is the default."""
    relative = os.path.relpath(queue_dir)
    if relative == os.environ.get("JSONQUEUE_DIR", "queue_data"):
        return ""
    return f" --queue {shlex.quote(relative if not relative.startswith('..') else queue_dir)}"


def _durability(name: str) -> str:
    if name == "power-cut":
        return "acknowledged only when it is on the disk"
    return f"{name}: acknowledged before it is on the disk; survives kill -9, may lose the last moments in a power cut"


def _changed(config: Config) -> str:
    import msgspec

    # omit_defaults leaves what differs from the defaults.
    changed = msgspec.json.decode(msgspec.json.encode(config))
    return ", ".join(f"{name} = {value}" for name, value in changed.items()) or "all defaults (a jsonqueue.toml in the folder changes them)"


class Rates:
    """Differences between two looks at counters that only grow."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._at_ms = 0

    def since_last(self, counters: dict[str, int], at_ms: int) -> dict[str, float]:
        """By how much each counter grew, a second, since the last call. A counter that shrank was started anew."""
        seconds = max(0.001, (at_ms - self._at_ms) / 1000)
        grown = {name: max(0, number - self._last.get(name, number)) / seconds for name, number in counters.items()}
        self._last, self._at_ms = dict(counters), at_ms
        return grown


def _live(manager: BrokerManager, rates: Rates) -> str:
    from jsonqueue.cli.status import sizes

    status = manager.status()
    counters = {name: number for broker in status.brokers for name, number in broker.counters.items()}
    each_second = rates.since_last({name: counters.get(name, 0) for name in ("published", "deliveries")}, status.up_ms)
    if status.stopping:
        held = counters.get("in_progress", 0)
        return f"stopping, {plural(held, 'task')} still in progress" if held else "stopping"
    parts = [f"{broker.role.replace('_', ' ')} {broker.state}" for broker in status.brokers if broker.state != "ready"]
    parts += [f"{count(counters.get(name, 0))} {title}" for name, title in _SHOWN.items() if counters.get(name) or name == "ready"]
    if consumers := counters.get("consumers"):
        parts.append(plural(consumers, "consumer"))
    parts += [f"{rate(each_second['published'])} in, {rate(each_second['deliveries'])} out"]
    parts.append(f"queue.json {size(sizes(Path(status.queue_dir)).queue_json)}")
    parts.append(f"up {duration(status.up_ms)}")
    return " · ".join(parts)


_SHOWN = {"ready": "ready", "in_progress": "in progress", "scheduled": "scheduled"}
"""Counters of the ConsumerBroker that say how the queue stands."""


def _farewell(console: Console, queue_dir: Path) -> None:
    from jsonqueue.cli.status import sizes

    if console.as_json:
        return
    left, file = sizes(queue_dir), printable(str(queue_dir / "queue.json"))
    if left.log_files:  # It was stopped at once, or the last checkpoint could not be.
        console.note(f"Stopped. What {file} does not hold yet is in the logs beside it ({size(left.logs)}); the next start reads both.")
    else:
        console.note(f"Stopped. {file} holds everything ({size(left.queue_json)}).")


@command("checkpoint", short_help="Bring queue.json up to date now.")
def checkpoint(settings: Settings) -> None:
    """Fold both logs into queue.json now. Asks the running brokers; where none run, does it itself."""
    from jsonqueue.channel.registration import operate
    from jsonqueue.cli.status import sizes

    require_queue(settings.queue_dir)
    try:
        report = operate(settings.queue_dir, "checkpoint")
    except BrokerUnavailable as error:
        tasks = _checkpoint_unless_held(settings.queue_dir, error)
        told = f"{plural(tasks, 'task')}, by this command: no broker is running"
    else:
        if not report.ok:
            raise CheckpointFailed(report.message)
        told = f"by the running brokers, in {duration(report.status.checkpoint_took_ms)}"
    written = sizes(settings.queue_dir).queue_json
    if settings.as_json:
        settings.console.json({"queue_json_bytes": written})
    else:
        settings.console.line(f"queue.json is up to date: {size(written)} ({told})")


class CheckpointFailed(JsonQueueError):
    """The manager could not write a new queue.json. The old one and the logs still hold everything."""

    exit_status = 74

    def __init__(self, why: str) -> None:
        super().__init__(f"the checkpoint failed: {why}", hint="nothing is lost: the previous queue.json and the logs hold everything")


def _checkpoint_unless_held(queue_dir: Path, unavailable: BrokerUnavailable) -> int:
    """By this command. A manager that is stopping is waited for, a moment; if it is still there then, the error says so."""
    from jsonqueue.storage.locks import holder

    if unavailable.silent and holder(queue_dir, "queue"):
        raise unavailable
    try:
        return _checkpoint_alone(queue_dir)
    except ManagerRunning:
        if holder(queue_dir, "queue"):
            raise unavailable from None
        raise


def _checkpoint_alone(queue_dir: Path) -> int:
    from jsonqueue.storage.checkpoint import final_checkpoint
    from jsonqueue.storage.folder import load_config, open_folder
    from jsonqueue.storage.locks import hold_all

    files = open_folder(queue_dir, create=False)
    with ExitStack() as stack:
        stack.callback(files.shut)
        files.guard(stack.enter_context(hold_all(queue_dir, timeout=5.0, what="jsonqueue checkpoint")))
        return final_checkpoint(files, config=load_config(files), at_ms=time.time_ns() // 1_000_000).tasks


@command("stop", short_help="Ask the running brokers to drain and stop.")
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Wait at most so many seconds for the end.")
def stop(settings: Settings, timeout: float) -> None:
    """Ask the running brokers to drain, to fold everything into queue.json, and to stop. Returns when they are gone."""
    if not settings.queue_dir.is_dir():
        raise NoQueue(settings.queue_dir)
    until = time.monotonic() + timeout
    pid = _tell_to_stop(settings.queue_dir, timeout, until)
    _wait_until_free(settings.queue_dir, timeout, until)
    if settings.as_json:
        settings.console.json({"stopped": pid})
    else:
        settings.console.line(f"stopped manager {pid} of {printable(str(settings.queue_dir))}")


_ANSWER_LEAST_S = 1.0
"""However little time is given for the end: a manager that is well answers within it."""
_LOOK_EVERY_S = 0.05


def _tell_to_stop(queue_dir: Path, timeout: float, until: float) -> int:
    """The pid of the manager that is stopping now, because of this or already."""
    from jsonqueue.channel.registration import operate
    from jsonqueue.client.presence import is_manager
    from jsonqueue.storage.locks import holder

    stopping = ""
    while True:
        try:
            return operate(queue_dir, "stop", timeout=max(timeout, _ANSWER_LEAST_S)).status.pid
        except BrokerUnavailable as error:
            who = holder(queue_dir, "queue")
            if error.silent and who:
                # It is there, suspended perhaps, and finds the question when it goes on.
                raise StillRunning(queue_dir, who, timeout, does="has not answered") from error
            if not is_manager(who):
                if stopping and not who:
                    return int(stopping.split()[1])
                raise
            stopping = who  # It takes no calls any more, or (for a moment) not yet.
            if time.monotonic() > until:
                raise StillRunning(queue_dir, who, timeout) from error
        time.sleep(_LOOK_EVERY_S)


def _wait_until_free(queue_dir: Path, timeout: float, until: float) -> None:
    from jsonqueue.storage.locks import holder

    while who := holder(queue_dir, "queue"):
        if time.monotonic() > until:
            raise StillRunning(queue_dir, who, timeout)
        time.sleep(_LOOK_EVERY_S)


class StillRunning(JsonQueueError):
    """The manager was told to stop and has not ended in time."""

    exit_status = 75

    def __init__(self, queue_dir: Path, who: str, timeout: float, *, does: str = "is still draining") -> None:
        super().__init__(
            f"{who} was told to stop, but {does} after {timeout:g} s",
            hint=f"wait a little, or look with: {command_for(str(queue_dir), 'status')}",
        )
