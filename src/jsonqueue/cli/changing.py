"""``jsonqueue cancel`` and ``jsonqueue dead``: what an operator changes. Changes need running brokers; looking does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jsonqueue.cli.app import Group, command, queue_options
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.reading import find, require_queue
from jsonqueue.cli.text import plural, printable
from jsonqueue.errors import JsonQueueError, TaskNotFound, command_for
from jsonqueue.task import StoredTask, TaskStatus

if TYPE_CHECKING:
    from jsonqueue.event import Changed

__all__ = ["cancel", "dead", "print_changed"]


@command("cancel", short_help="Take tasks out of the queue before they complete.")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", default="cancelled from the command line", show_default=True, help="What is kept with the tasks.")
def cancel(settings: Settings, task_ids: tuple[str, ...], reason: str) -> int:
    """Take tasks out of the queue before they complete, whatever they are doing.

    Durable when it returns. Exit status 1 if one of them could not be cancelled, because it has ended or is not there.
    """
    from jsonqueue.client.caller import caller_of

    require_queue(settings.queue_dir)
    return print_changed(settings.console, caller_of(settings.queue_dir).cancel(_checked(task_ids), reason=reason), "cancelled")


def _checked(task_ids: tuple[str, ...]) -> list[str]:
    from jsonqueue.client.intake import check_id

    return [check_id(task_id) for task_id in dict.fromkeys(task_ids)]


def print_changed(console: Console, changed: Changed, done: str) -> int:
    """What became of each id; 1 if one of them was refused."""
    if console.as_json:
        console.json({done: changed.ids, "refused": changed.refused})
        return 1 if changed.refused else 0
    if not console.person or len(changed.ids) <= 20:
        for task_id in changed.ids:
            console.line(f"{task_id}  {done}")
    for task_id, why in changed.refused.items():
        console.note(f"{printable(task_id)}: not {done}: {printable(why)}")
    if len(changed.ids) != 1:
        console.note(f"{plural(len(changed.ids), 'task')} {done}.")
    return 1 if changed.refused else 0


@click.group("dead", cls=Group, short_help="Dead letters: list, show, replay.", context_settings={"help_option_names": ["-h", "--help"]})
@queue_options
def dead() -> None:
    """Dead letters: tasks that ran out of attempts, of time, or of hope."""


def _in_dead(function: click.Command) -> click.Command:
    dead.add_command(function)
    return function


@_in_dead
@command("list", short_help="List the dead letters, with the reason.")
@click.option("--id-prefix", default="", help="Only ids that begin like this.")
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="At most so many; 0: all.")
def dead_list(settings: Settings, id_prefix: str, newest: bool, limit: int) -> None:
    """List the dead letters, with the reason."""
    from jsonqueue.cli.listing import Filter, print_tasks

    wanted = Filter(frozenset({TaskStatus.DEAD}), id_prefix, newest=newest)
    print_tasks(settings, wanted, limit=limit, now_ms=time.time_ns() // 1_000_000)


@_in_dead
@command("show", short_help="Everything about one dead letter.")
@click.argument("task_id", metavar="ID")
def dead_show(settings: Settings, task_id: str) -> None:
    """Everything about one dead letter: its payload and the errors of its attempts."""
    from jsonqueue.cli.showing import print_task

    found = find(settings.queue_dir, task_id)
    if found.task.status is not TaskStatus.DEAD:
        raise NotDead(found.task, settings.queue_dir)
    print_task(settings, found, now_ms=time.time_ns() // 1_000_000)


class NotDead(JsonQueueError):
    """The task is there, and alive or ended otherwise."""

    exit_status = TaskNotFound.exit_status

    def __init__(self, task: StoredTask, queue_dir: Path) -> None:
        super().__init__(
            f"task {task.id} is no dead letter, but {task.status}", hint=f"it is shown by: {command_for(str(queue_dir), 'show', task.id)}"
        )
        self.task_id, self.status = task.id, task.status


@_in_dead
@command("replay", short_help="Give dead letters another life.")
@click.argument("task_ids", metavar="[ID...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
def dead_replay(settings: Settings, task_ids: tuple[str, ...], every: bool) -> int:
    """Give dead letters another life: attempts counted from zero, history kept, the deadline lifted.

    Durable when it returns. Exit status 1 if one of them could not be replayed.
    """
    from jsonqueue.client.caller import caller_of

    if every == bool(task_ids):
        raise click.UsageError("name the dead letters to replay, or say --all" + (": not both" if every else ""))
    require_queue(settings.queue_dir)
    return print_changed(settings.console, caller_of(settings.queue_dir).replay(_checked(task_ids)), "replayed")
