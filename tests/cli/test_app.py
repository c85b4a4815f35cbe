"""What all commands share: how a run ends, what it says then, and how little it loads."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.calls import call
from jsonqueue.cli import app
from jsonqueue.cli.app import COMMANDS, cli
from jsonqueue.cli.console import Settings
from jsonqueue.errors import BrokerUnavailable, JsonQueueError, ManagerRunning, StorageError


class Failing(list[BaseException]):
    """What the command `fail` raises, and the settings it was called with."""

    settings: Settings


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """A command that raises what is in the list."""
    errors = Failing()

    @app.command("fail")
    def fail(settings: Settings) -> None:
        errors.settings = settings
        raise errors[0]

    found = app.LazyGroup.get_command
    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail if name == "fail" else found(self, ctx, name))
    return errors


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ManagerRunning("q", holder="process 812"), 75, "Error: q is already served by process 812\nHint:  one BrokerManager serves"),
        (JsonQueueError("a \x1b[31mlie\nError: forged"), 1, "Error: a \\x1b[31mlie\\nError: forged\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 74, "Error: /x: permission denied\n"),
        (ValueError("oops"), 70, "Error: unexpected ValueError: oops\nHint:  this is a bug in jsonqueue; JSONQUEUE_DEBUG=1 shows where\n"),
        (
            RuntimeError("can't start new thread"),
            75,
            "Error: can't start new thread\nHint:  try again when other programs have ended; `ulimit",
        ),
        (MemoryError(), 75, "Error: out of memory\nHint:  try again when other programs have ended; `ulimit"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(143), 143, ""),
    ],
)
def test_every_end_is_one_sentence_and_a_status(failing: Failing, error: BaseException, status: int, said: str) -> None:
    """On standard error, never with a traceback, and nothing of it can forge a line of its own."""
    failing.append(error)
    called = call("fail")
    assert (called.status, called.out) == (status, "")
    assert called.err.lstrip("\n").startswith(said)
    assert "Traceback" not in called.err


def test_with_debug_the_traceback_comes_through(failing: Failing) -> None:
    failing.append(ValueError("oops"))
    with pytest.raises(ValueError, match="oops"):
        call("fail", environment={"JSONQUEUE_DEBUG": "1"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lisst"], "no command 'lisst'. Did you mean 'list'?"),
        (["\x1b[31mlist"], "no command '\\x1b[31mlist'. Did you"),
        (["show", "a", "\x1b[31mb"], "unexpected extra argument (\\x1b[31mb)"),
        (["publish", "1", "--priorty", "2"], "--priority"),
        (["--wrokers", "2"], "Did you mean '--workers'?"),
        (["list", "--status", "pendng"], "'pendng' is not one of"),
        (["publish", "1", "--delay", "soon"], "'soon' is no wait"),
        (["dead", "replay"], "name the dead letters to replay, or say --all"),
        (["dead", "replay", "--all", "b1"], "say --all: not both"),
        (["work"], "name a MODULE:FUNCTION, or a program with --exec"),
        (["publish", "1", "--tasks"], "--tasks reads standard input"),
        (["--queue"], "Option '--queue' requires an argument"),
        (["status", "--interval", "5"], "--interval goes with --watch: without it there is one look"),
        (["work", "--exec", "true", "--isolate"], "--isolate goes with a MODULE:FUNCTION"),
        (["--queue", "q", "simulate"], "--queue does not go with simulate, whose queues are made up: --replay takes"),
        (["bench", "--queue", "q"], "--queue does not go with bench, whose queues are its own: --folder names"),
        (["bench", "--matrix", "--tasks", "70"], "--tasks counts for nothing with matrix: leave it out"),
        (["bench", "latency", "fan-out", "--workers", "3"], "--workers counts for nothing with latency, fan-out: "),
        (["bench", "drain", "restart", "--no-batch"], "--batch counts for nothing with drain, restart: "),
        (["bench", "publish", "both", "--batch", "--workers", "3"], "--workers counts for nothing with publish, both in batches: "),
    ],
)
def test_wrong_usage_is_told_with_a_suggestion(arguments: list[str], said: str) -> None:
    """Exit status 2. An unknown option without a command is one of the demo's."""
    called = call(*arguments, terminal=True)
    assert (called.status, called.out) == (2, "")
    assert said.replace("'", "") in called.err.replace("'", "")


@pytest.mark.parametrize(
    ("arguments", "queue", "as_json"),
    [
        (["fail"], "queue_data", False),
        (["--queue", "here", "fail"], "here", False),
        (["fail", "--queue", "here", "--json"], "here", True),
        (["--json", "--queue=a", "fail", "--queue", "b"], "b", True),
    ],
)
def test_shared_options_stand_before_or_behind_the_command(failing: Failing, arguments: list[str], queue: str, as_json: bool) -> None:
    failing.append(JsonQueueError("seen"))
    call(*arguments)
    assert (failing.settings.queue_dir, failing.settings.as_json) == (Path(queue), as_json)


def test_the_environment_names_the_queue_and_the_option_overrules_it(tmp_path: Path) -> None:
    for arguments, named in ((["status"], "from-env"), (["status", "--queue", "from-option"], "from-option")):
        assert call(*arguments, environment={"JSONQUEUE_DIR": "from-env"}).err.startswith(f"Error: {named} does not exist")


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        ([], 0),
        (["--json"], 1),
        (["--queue"], None),
        (["--queue", "q"], 2),
        (["--queue", "q", "--workers", "2"], 2),
        (["--input", "x"], 0),
        (["list"], None),
        (["--json", "list"], None),
        (["--help"], None),
        (["--version"], None),
    ],
)
def test_options_without_a_command_belong_to_the_demo(arguments: list[str], position: int | None) -> None:
    assert isinstance(cli, app.LazyGroup)
    assert cli._own_options(arguments) == position


def test_every_command_is_there_and_explains_itself() -> None:
    """The overview needs no import of them; each has a help text, and each option a sentence."""
    overview = call("--help").out
    context = click.Context(cli)
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in overview
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert line.endswith(".")
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{name} {parameter.name}"
        assert call(name, "--help").status == 0


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = f"jsonqueue {importlib.metadata.version('jsonqueue')}"
    except importlib.metadata.PackageNotFoundError:
        installed = "jsonqueue, not installed"
    assert call("--version").out == installed + "\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_the_shell(shell: str) -> None:
    assert "_JSONQUEUE_COMPLETE" in call("completion", shell).out


def test_a_shell_is_told_commands_and_options() -> None:
    """What the script asks when somebody presses the tab key."""
    words = {**_environment(), "_JSONQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": "jsonqueue pub", "COMP_CWORD": "1"}
    run = [sys.executable, "-c", "from jsonqueue.cli.app import run; run()"]
    assert subprocess.run(run, env=words, capture_output=True, text=True, check=False).stdout == "plain,publish\n"


@pytest.mark.parametrize("arguments", [["--help"], ["publish", "--help"], ["publish", "{broken"], ["list", "--help"]])
def test_a_command_loads_only_what_it_needs(arguments: list[str]) -> None:
    """A publish in a shell loop should not wait for rich and asyncio to be imported."""
    code = "import sys; from jsonqueue.cli.app import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=_environment())
    assert not {"rich", "asyncio", "jsonqueue.broker.manager"} & {*done.stderr.split()}


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`jsonqueue list | head -1`: quiet, and the status of a program that SIGPIPE ended."""
    code = "import sys; sys.stdout.reconfigure(write_through=True); from jsonqueue.cli.app import run; sys.exit(run(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, env=_environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")


@pytest.mark.parametrize(
    ("redirected", "arguments", "status"),
    [
        (">&-", "list", 0),
        (">&- 2>&-", "list", 0),
        ("2>&-", "--queue nosuch status", 66),
        pytest.param("2>/dev/full", "--queue nosuch status", 66, marks=_FULL),
        pytest.param("2>/dev/full", "list --nosuch", 2, marks=_FULL),
        ("<&- >&- 2>&-", "--queue other publish 2", 0),
        ("<&-", "publish", 2),
    ],
)
def test_closed_streams_are_nowhere(tmp_path: Path, redirected: str, arguments: str, status: int) -> None:
    """What would be printed is not, the exit status stands, and no file of the queue gets the number of a standard stream."""
    call("publish", "1", "--id", "one", "--queue", str(tmp_path / "queue_data"))
    line = f'exec "$0" -m jsonqueue {arguments} {redirected}'
    run = ["sh", "-c", line, sys.executable]
    done = subprocess.run(run, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "bug" in done.stderr) == (status, False), done.stderr
    assert call("verify", "--queue", str(tmp_path / "queue_data")).status == 0


@_FULL
@pytest.mark.parametrize("arguments", [["--help"], ["publish", "-h"], ["dead", "--help"], ["dead", "list", "-h"], ["--version"]])
def test_help_that_cannot_be_printed_names_standard_output(arguments: list[str]) -> None:
    """As any other result does: "no space left" by itself would be taken for the queue's disk."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jsonqueue", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=_environment()
        )
    assert (done.returncode, done.stderr) == (74, "Error: standard output cannot be written to: no space left on device\n")


@pytest.mark.parametrize("command", ["list", "list --json", "show one", "show one --json"])
def test_what_a_locale_has_no_sign_for_is_an_escape(tmp_path: Path, command: str) -> None:
    """And not a bug of ours."""
    payload = "gr\u00fcn \u0142 \u2026 \U0001f600"
    call("publish", f'"{payload}"', "--id", "one", "--queue", str(tmp_path))
    line = [sys.executable, "-m", "jsonqueue", "--queue", str(tmp_path), *command.split()]
    done = subprocess.run(line, capture_output=True, check=False, env={**_environment(), "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"gr\xfcn \\u0142 \\u2026 \\ud83d\\ude00"' in done.stdout
    if "--json" in command:
        assert json.loads(done.stdout.decode("latin-1"))["data"] == payload, "it is JSON all the same"


@pytest.mark.parametrize("number", [1, 2])
def test_no_file_takes_the_number_of_a_closed_stream(number: int) -> None:
    """A log under the number of standard error would get every warning."""
    code = (
        "import os, sys; from jsonqueue.cli.app import _open_closed_streams as go; go(); "
        f"sys.exit(os.open('/dev/null', 0) == {number} or not os.get_inheritable({number}) or not sys.stdout or not sys.stderr)"
    )
    run = ["sh", "-c", f'exec "$0" -c "$1" {number}>&-', sys.executable, code]
    assert subprocess.run(run, env=_environment(), check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--queue", "", "status"], ["publish", "1", "--queue="]])
def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """A script whose variable is empty must not make a queue wherever it happens to be."""
    monkeypatch.chdir(tmp_path)
    called = call(*arguments)
    assert (called.status, "an empty name is no folder" in called.err) == (2, True)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["list", "publish 1", "stop"])
def test_a_file_is_no_folder(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    for called in (
        call(*command.split(), environment={"JSONQUEUE_DIR": str(tmp_path / "file")}),
        call(*command.split(), "--queue", str(tmp_path / "file")),
        call("--queue", str(tmp_path / "file"), *command.split()),
    ):
        assert called.status == 77
        assert called.err.startswith(f"Error: {tmp_path / 'file'} is a file, not a folder\nHint:  name the folder of the queue")


@pytest.mark.parametrize("command", ["bench", "completion bash", "simulate --workers 1 --tasks 1"])
def test_to_a_command_without_a_queue_it_is_nothing_what_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """They were refused for a file of that name; and that a folder must be named did not help, since they take none."""
    monkeypatch.setattr("jsonqueue.cli.bench.report.measure_all", lambda *_, **__: [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue_data").touch()
    for environment in ({"JSONQUEUE_DIR": str(tmp_path / "queue_data")}, {}):
        called = call(*command.split(), environment=environment)
        assert (called.status, called.err) == (0, "")


def test_a_folder_that_must_not_be_read_is_no_wrong_usage(failing: Failing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for the command to say what is the matter with it."""
    monkeypatch.setattr("os.access", lambda *_: False)
    failing.append(JsonQueueError("seen"))
    assert call("fail", "--queue", str(tmp_path)).err == "Error: seen\n"


def test_a_folder_that_cannot_be_reached_is_one_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in one that another user keeps to himself."""

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "theirs")

    with monkeypatch.context() as within:
        within.setattr("os.stat", deny)
        called = call("status", "--queue", "theirs")
    assert (called.status, called.err.splitlines()[0]) == (77, "Error: theirs cannot be reached: permission denied")


def test_a_broker_that_must_not_be_called_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` said that none was running on another user's folder, and how to start one."""

    def deny(queue_dir: Path, *_: object, **__: object) -> None:
        try:
            raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise BrokerUnavailable(str(queue_dir), cause="permission denied") from error

    us = os.geteuid()
    monkeypatch.setattr("jsonqueue.channel.registration.operate", deny)
    monkeypatch.setattr("os.geteuid", lambda: us + 1)
    called = call("stop", "--queue", str(tmp_path))
    assert (called.status, called.err.splitlines()[0]) == (77, f"Error: {tmp_path} belongs to user {us}, not to us ({us + 1})")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_folder_whose_mode_forbids_it_is_named(failing: Failing, tmp_path: Path, wrapped: bool) -> None:
    """The file that could not be made says little: the folder and its mode say what to do. Of a folder with its mode in order, nothing."""
    error: Exception = PermissionError(errno.EACCES, "Permission denied", "published.draft")
    if wrapped:
        error, error.__cause__ = StorageError("published.draft: Permission denied"), error
    failing.append(error)
    assert "published.draft: permission denied" in call("fail", "--queue", str(tmp_path)).err.lower()
    tmp_path.chmod(0o500)
    called = call("fail", "--queue", str(tmp_path))
    tmp_path.chmod(0o700)
    assert (called.status, called.out) == (77, "")
    assert called.err == f"Error: {tmp_path} cannot be used: permission denied, its mode is 0500\nHint:  chmod u+rwx {tmp_path}\n"


def test_python_dash_m_is_the_same_command() -> None:
    """Both ways in."""
    for module in ("jsonqueue", "jsonqueue.main"):
        done = subprocess.run([sys.executable, "-m", module, "nonsense"], capture_output=True, text=True, check=False, env=_environment())
        assert (done.returncode, "no command" in done.stderr) == (2, True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize(("terminal", "styled"), [("xterm-256color", True), ("dumb", False)])
def test_an_error_has_no_colours_on_a_terminal_that_has_none(failing: Failing, terminal: str, styled: bool) -> None:
    """An editor's shell, for one, shows an escape sequence as it is written."""
    failing.append(JsonQueueError("no", hint="none"))
    assert ("\x1b" in call("fail", terminal=True, environment={"TERM": terminal, "NO_COLOR": ""}).err) == styled


def test_errors_are_json_free_text_whatever_is_asked_for(failing: Failing) -> None:
    """Standard output stays clean for the program that reads it."""
    failing.append(JsonQueueError("no"))
    called = call("--json", "fail")
    assert called.out == ""
    with pytest.raises(json.JSONDecodeError):
        json.loads(called.err)
