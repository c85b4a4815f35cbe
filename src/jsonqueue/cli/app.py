"""The ``jsonqueue`` command: which commands there are, what all of them share, and how a run ends.

Exit statuses (those of sysexits.h, plus the shell's own for signals): 0 done · 1 the answer is no (a dead task, findings of verify, totals
that differ) · 2 wrong usage · 64 no such handler · 65 bad data · 66 no such task · 69 no broker running · 70 a bug of ours · 72 a log
taken away · 74 disk trouble · 75 try again later · 76 nonsense on a connection · 77 folder refused · 78 bad settings or a newer format ·
129 the terminal was closed · 130 Ctrl-C · 141 the reader of our output went away · 143 SIGTERM.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar

import click

from jsonqueue.cli.console import DEFAULT_DIR, Console, Settings, is_terminal
from jsonqueue.cli.text import ESCAPES, printable, printable_lines
from jsonqueue.errors import BrokerUnavailable, FolderRefused, JsonQueueError, StorageError, is_want, words_of
from jsonqueue.signals import hangup

__all__ = ["COMMANDS", "Group", "cli", "command", "queue_options", "run", "terminated_as_interrupted", "to_nowhere"]

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo.command:demo", "Watch real work go through a queue (what happens without a command)."),
    "serve": ("serving:serve", "Start the brokers of a queue and serve until stopped."),
    "publish": ("publishing:publish", "Put tasks into the queue: one from the command line, or many from standard input."),
    "work": ("working:work", "Run tasks with a Python function, or with any program."),
    "status": ("status:status", "How the queue stands."),
    "list": ("listing:list_tasks", "List tasks."),
    "show": ("showing:show", "Everything about one task, with the history of its attempts."),
    "result": ("showing:result", "Print the result of a task, or wait for it."),
    "cancel": ("changing:cancel", "Take tasks out of the queue before they complete."),
    "dead": ("changing:dead", "Dead letters: list, show, replay."),
    "verify": ("mending:verify", "Check every byte of the queue's files; changes nothing."),
    "repair": ("mending:repair", "Mend damaged files; loses nothing unless told to."),
    "checkpoint": ("serving:checkpoint", "Bring queue.json up to date now."),
    "stop": ("serving:stop", "Ask the running brokers to drain and stop."),
    "bench": ("bench.command:bench", "Measure how fast the queue is here, on this disk."),
    "simulate": ("simulating:simulate", "Run the real brokers on a simulated machine where things go wrong."),
    "completion": ("completion:completion", "Print the script that completes commands in a shell."),
}
"""Name → (where it lives, its line in the overview). In the order of the overview."""

_DEFAULT = "demo"
_WIDTH = 100

T = TypeVar("T", bound=Callable[..., Any])


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit status. Prints what went wrong as one sentence, with a hint, on standard error.

    ``JSONQUEUE_DEBUG=1`` lets errors through as they are, with their traceback.
    """
    debug = os.environ.get("JSONQUEUE_DEBUG") == "1"
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):  # in a locale other than UTF-8 what it has no sign for is an escape
        sys.stdout.reconfigure(errors=ESCAPES)
    try:
        return _finished(cli.main(args=arguments, prog_name="jsonqueue", standalone_mode=False))
    except click.ClickException as error:
        # What was typed is in it, or what a script's variable held. (It is final to a type checker, and shown by who reads it.)
        vars(error)["message"] = "\n".join(printable_lines(error.message))
        with suppress(OSError):  # where nothing can be said any more, the exit status still tells
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit as end:  # click ends the process like this when standard output is closed
        return _gone() if end.code == 1 else int(end.code or 0)
    except BrokenPipeError:
        return _gone()
    except JsonQueueError as error:
        if debug:
            raise
        complain(str(error), error.hint)
        return error.exit_status
    except OSError as error:
        if debug:
            raise
        complain(_sentence(error))
        return 74
    except Exception as error:  # the last resort: a person gets a sentence, the traceback is a switch away
        if debug:
            raise
        return _unexpected(error)
    finally:
        _give_up_unprinted()


def _unexpected(error: Exception) -> int:
    if is_want(error):
        complain(words_of(error), "try again when other programs have ended; `ulimit -a` shows how much of what this user may have")
        return 75
    complain(f"unexpected {type(error).__name__}: {error}", "this is a bug in jsonqueue; JSONQUEUE_DEBUG=1 shows where")
    return 70


def _open_closed_streams() -> None:
    """Where a standard stream was closed (``>&-``), put the null device: else the next file that is opened, a log perhaps, would get
    its number, and whatever is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if name != "stdin" and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _finished(value: Any) -> int:
    try:
        sys.stdout.flush()  # here, and not at the interpreter's exit, where a closed pipe could only be reported as a traceback
    except BrokenPipeError:
        return _gone()
    return value if isinstance(value, int) else 0


def _gone() -> int:
    """The reader of our output (``head``, a pager) has gone away: say nothing."""
    to_nowhere(sys.stdout)
    return 141


def _give_up_unprinted() -> None:
    """What a stream has not taken by now it never will: else the interpreter tries again at its end, and makes that the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            to_nowhere(stream)


def to_nowhere(stream: TextIO) -> None:
    """Whatever is still said there is said in vain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _sentence(error: OSError) -> str:
    what = (error.strerror or str(error)).lower()
    return f"{error.filename}: {what}" if error.filename else what


def complain(message: str, hint: str = "") -> None:
    """One sentence on standard error, and what to do about it."""
    colour = is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")
    with suppress(OSError):  # where nothing can be said any more, the exit status still tells
        # click leaves the styles out by itself when color is False.
        click.echo(click.style("Error: ", fg="red", bold=True) + printable(message), err=True, color=colour)
        if hint:
            click.echo(click.style("Hint:  ", dim=True) + printable(hint), err=True, color=colour)


class _Helpful:
    """Its ``--help`` is printed as every result is: a standard output that takes nothing is named."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option: click.Option | None = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        Console().line(ctx.get_help())
        ctx.exit()


class _Command(_Helpful, click.Command):
    """One command."""


class Group(_Helpful, click.Group):
    """Commands under a name."""


class LazyGroup(Group):
    """Commands that are imported when they are called. Options without a command belong to the demo."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(f"jsonqueue.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A shell that asks for completions has typed only a part, to which nothing must be added.
        position = None if ctx.resilient_parsing else self._own_options(args)
        if position is not None:
            args = [*args[:position], _DEFAULT, *args[position:]]
        return super().parse_args(ctx, args)

    def _own_options(self, args: list[str]) -> int | None:
        """Where the demo's name is missing: behind the options of the group, if no command follows them. None: nothing is missing."""
        position = 0
        while position < len(args):
            argument = args[position]
            if argument in {"-h", "--help", "--version"} or not argument.startswith("-"):
                return None
            if argument == "--queue":
                position += 2
            elif argument == "--json" or argument.startswith("--queue="):
                position += 1
            else:
                return position
        return position if position == len(args) else None  # behind the end: of the last one its value is missing, as click will say

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            raise _unknown_command(ctx, name)
        return super().resolve_command(ctx, args)


def _unknown_command(ctx: click.Context, name: str) -> click.UsageError:
    near = get_close_matches(name, COMMANDS, n=1)
    return click.UsageError(f"no command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)


def queue_options(function: T) -> T:
    """``--queue`` and ``--json``: understood before and behind the command's name."""
    function = click.option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print JSON, one value a line, for programs to read."
    )(function)
    return click.option(
        "--queue", metavar="DIR", expose_value=False, callback=_set_queue, type=_Folder(file_okay=False),
        help="The queue folder  [default: $JSONQUEUE_DIR, or queue_data]",
    )(function)  # fmt: skip


class _Folder(click.Path):
    """Completed by a shell as a folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # a script's variable without a value, which to a path would be the current folder
            self.fail("an empty name is no folder (the current one is .)", param, ctx)
        return Path(value)  # What else is wrong with it is told where it is used, whichever way it was named.


def _set_queue(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    settings = ctx.ensure_object(Settings)
    if value is not None:
        # A hint leaves the default's name out: typed like that where JSONQUEUE_DIR names another folder, it would be meant of that one.
        hidden = value == DEFAULT_DIR != Path(os.environ.get("JSONQUEUE_DIR") or DEFAULT_DIR)
        settings.queue_dir, settings.queue_given = value.absolute() if hidden else value, True
    elif ctx.parent is None and os.environ.get("JSONQUEUE_DIR"):
        settings.queue_dir = Path(os.environ["JSONQUEUE_DIR"])


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).as_json = True


def command(name: str, *, of_queue: bool = True, **options: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of jsonqueue: with the shared options, and :class:`Settings` as its first argument.

    ``of_queue``: it looks into the queue folder. To one that does not, it is nothing what is found there instead.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        made: Callable[..., click.Command] = click.command(name, cls=_Command, context_settings=_CONTEXT, **options)
        return made(queue_options(_with_settings(function, of_queue=of_queue)))

    return decorate


def _with_settings(function: Callable[..., Any], *, of_queue: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        settings = click.get_current_context().ensure_object(Settings)
        if not of_queue:
            return function(settings, *arguments, **options)
        try:
            if settings.queue_dir.is_file():
                raise FolderRefused(
                    f"{settings.queue_dir} is a file, not a folder", hint="name the folder of the queue: --queue DIR, or JSONQUEUE_DIR"
                )
            return function(settings, *arguments, **options)
        except (PermissionError, StorageError) as error:
            from jsonqueue.storage.folder import denied_by

            refused = denied_by(settings.queue_dir, error)
            if refused is None:
                raise
            raise refused from error
        except BrokerUnavailable as error:
            from jsonqueue.client.presence import told_better
            from jsonqueue.storage.folder import denied_by

            raise denied_by(settings.queue_dir, error.__context__) or told_better(settings.queue_dir, error) from error.__cause__

    return call


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        Console().line(f"jsonqueue {version('jsonqueue')}")
    except PackageNotFoundError:  # run from a source tree that is not installed
        Console().line("jsonqueue, not installed")
    ctx.exit()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, unwind like Ctrl-C does, so that nothing is left behind, and exit with 143 and 129,
    as the shell expects."""
    hung_up = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal hung_up
        if number == signal.SIGHUP and hung_up:  # The kernel tells it too, when the shell has ended: that is no want of patience.
            return
        hung_up |= number == signal.SIGHUP
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, *hangup())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH}


@click.group(cls=LazyGroup, context_settings=_CONTEXT)
@queue_options
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit.")
def cli() -> None:
    """A durable task queue that needs no server, in files that you can read.

    Without a command, the demo runs: watch real work go through a queue.

    \b
    A first minute:
      jsonqueue serve                                   in one terminal
      jsonqueue publish '{"url": "https://example.org"}'
      jsonqueue work --exec 'jq .data.url'              in another
      jsonqueue status
    """
