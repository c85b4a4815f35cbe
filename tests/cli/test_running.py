"""serve, work, stop, checkpoint, verify, repair: what is parsed and printed; and once all of it together, by real processes."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
import termios
import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import pytest
from click import unstyle
from msgspec import structs

from cli.calls import call
from jsonqueue.channel.registration import BrokerStatus, ManagerStatus, Report
from jsonqueue.cli import serving, working
from jsonqueue.cli.live import LiveLine, bar
from jsonqueue.cli.options import SIZE
from jsonqueue.cli.serving import Rates, settings_of
from jsonqueue.cli.working import UntilEmpty
from jsonqueue.client.holdings import ConsumerStats
from jsonqueue.client.limits import Limits
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BrokerUnavailable, CorruptQueue, FolderRefused, InvalidConfig, InvalidHandler, ManagerRunning
from jsonqueue.storage import repair
from jsonqueue.storage.checkpoint import CheckpointDone, final_checkpoint
from jsonqueue.storage.files import Files
from jsonqueue.storage.locks import hold
from jsonqueue.task import TaskStatus

BROKERS = [
    BrokerStatus("publisher_broker", "ready", 813, 4),
    BrokerStatus("consumer_broker", "waiting", 814, 5, restarts=2, peers=3, waits_for="no room\x1b[2J on it"),
]
RUNNING = ManagerStatus("q", 812, 1, 65_000, "process-crash", Config(), BROKERS, checkpoint_error="no room \x1b[2J")


@pytest.mark.parametrize(("held", "said"), [(0, "stopping"), (2, "stopping, 2 tasks still in progress")])
def test_a_manager_that_stops_shows_what_it_waits_for(held: int, said: str) -> None:
    """Not that its brokers are down, one after the other, as it wants."""
    brokers = [BrokerStatus("publisher_broker", "down"), BrokerStatus("consumer_broker", "ready", 814, counters={"in_progress": held})]
    manager = SimpleNamespace(status=lambda: structs.replace(RUNNING, brokers=brokers, stopping=True))
    assert serving._live(manager, Rates()) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "running", "said"),
    [
        ("working", 1, ""),
        ("waiting", 1, " · waiting for a broker"),
        ("draining", 1, " · stopping, 1 task still running"),
        ("draining", 0, " · stopping"),
    ],
)
def test_a_consumer_shows_what_it_waits_for(state: str, running: int, said: str) -> None:
    """Also one that had a broker before."""
    consumer = SimpleNamespace(name="c", stats=ConsumerStats(completed=3, connections=2), state=state, running=running)
    rates = Rates()
    rates.since_last({"completed": 3}, 1)
    assert working._live(consumer, rates) == f"c · 3 completed (0/s){said}"  # type: ignore[arg-type]


def test_settings_of_a_command_line_lie_over_the_folders(tmp_path: Path) -> None:
    """Values read as TOML, and as plain words where they are none."""
    (tmp_path / "jsonqueue.toml").write_text("lease_ms = 5_000\nattempts_max = 9\n")
    config = settings_of(tmp_path, ("lease_ms=60_000", "durability=process-crash", "archive=false", 'retry={kind="never"}'))
    assert (config.lease_ms, config.attempts_max, config.durability, config.archive) == (60_000, 9, "process-crash", False)


def test_settings_are_not_read_through_a_link(tmp_path: Path) -> None:
    """Not by ``serve --set`` either; and a folder that is not there yet has none."""
    (tmp_path / "elsewhere.toml").write_text("lease_ms = 5_000\n")
    queue_dir = tmp_path / "queue"
    assert settings_of(queue_dir, ("lease_ms=60_000",)).lease_ms == 60_000
    queue_dir.mkdir(mode=0o700)
    (queue_dir / "jsonqueue.toml").symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(FolderRefused, match=r"jsonqueue\.toml is not a regular file"):
        settings_of(queue_dir, ("attempts_max=9",))


@pytest.mark.parametrize(
    ("typed", "meant"), [("1024", 1024), ("512M", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("2 kb", 2048), (7, 7), ("1T", 2**40)]
)
def test_sizes_read_as_people_write_them(typed: str | int, meant: int) -> None:
    assert SIZE.convert(typed, None, None) == meant


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e30", "3000000", "-1"])
@pytest.mark.parametrize("command", ["serve --grace", "stop --timeout", "result x --timeout", "status --watch --interval"])
def test_seconds_that_cannot_be_waited_for_are_refused(tmp_path: Path, command: str, seconds: str) -> None:
    """They ended as a bug of ours, of serve when it was told to stop."""
    queue_dir = tmp_path / "queue"
    called = call(*command.split(), seconds, "--queue", str(queue_dir))
    assert (called.status, called.out) == (2, "")
    assert "Invalid value for '--" in called.err
    assert not queue_dir.exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--timeout=0", "without the option there is no limit"),
        ("--timeout=0s", "without the option there is no limit"),
        ("--memory=0", "less than a byte"),
        ("--memory=99999999T", "more than there is"),
        (f"--memory={'9' * 400}", "more than there is"),
        (f"--cpu={2**63}", "more than a kernel can count"),
        (f"--open-files={2**63}", "more than a kernel can count"),
        (f"--processes={2**63}", "more than a kernel can count"),
        (f"--concurrency={2**40}", "is not in the range"),
    ],
)
def test_a_limit_that_no_task_could_keep_or_no_kernel_take_is_wrong_usage(tmp_path: Path, option: str, said: str) -> None:
    """The first ended as a bug of ours, and the last before it had begun; with the others every task failed until it was dead."""
    called = call("work", "--exec", "cat", option, "--queue", str(tmp_path / "q"))
    assert (called.status, said in called.err) == (2, True), called.err


@pytest.mark.parametrize("most", [0, -1, 2**62 + 1, 1.5, True])
def test_limits_that_are_none_are_refused_when_they_are_made(most: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 to"):
        Limits(cpu_s=most)


@pytest.mark.parametrize("typed", ["much", "1X", "-5M", "", "M"])
def test_a_size_that_is_none_is_refused(typed: str) -> None:
    with pytest.raises(click.BadParameter, match="give bytes"):
        SIZE.convert(typed, None, None)


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ([], None),
        (["--memory", "512M"], Limits(memory_bytes=512 * 2**20)),
        (["--cpu", "60", "--open-files", "64", "--processes", "200"], Limits(cpu_s=60, open_files=64, processes=200)),
    ],
)
def test_work_hands_its_limits_on(options: list[str], limits: Limits | None) -> None:
    """What is not asked for is not limited."""
    with mock.patch("jsonqueue.client.consumer.Consumer", side_effect=InvalidHandler("enough")) as made:
        call("work", "tasks:double", "--timeout", "5", *options)
    assert made.call_args.kwargs["limits"] == limits
    assert made.call_args.kwargs["timeout"] == 5


@pytest.mark.parametrize("assignment", ["lease=5", "lease_ms=soon", "lease_ms=1"])
def test_a_setting_that_is_none_is_named(tmp_path: Path, assignment: str) -> None:
    with pytest.raises(InvalidConfig, match="--set"):
        settings_of(tmp_path, (assignment,))
    with pytest.raises(click.UsageError, match="expected NAME=VALUE"):
        settings_of(tmp_path, ("lease_ms",))


def test_a_second_serve_is_told_who_serves(tmp_path: Path) -> None:
    """75, before anything is written."""
    with hold(tmp_path, "queue", what="the first one"):
        called = call("serve", "--queue", str(tmp_path))
    assert called.status == ManagerRunning.exit_status
    assert f"process {os.getpid()} (the first one)" in called.err


def test_who_finds_a_queue_served_is_told_by_which_command(tmp_path: Path) -> None:
    """And not by which class of ours: a program that serves it by itself says so in that way."""
    with mock.patch("jsonqueue.broker.manager.hold", side_effect=ManagerRunning("q", holder="somebody")) as taken:
        for command in ("serve", "demo"):
            assert call(command, "--queue", str(tmp_path)).status == ManagerRunning.exit_status
    assert [taking.kwargs["what"] for taking in taken.call_args_list] == ["jsonqueue serve", "jsonqueue demo"]


@pytest.mark.parametrize("terminal", [False, True])
def test_status_tells_of_the_brokers(tmp_path: Path, terminal: bool) -> None:
    """What a broker waits for, restarts, relaxed durability and a checkpoint that failed are what an operator has to see."""
    call("publish", "1", "--queue", str(tmp_path))
    call("checkpoint", "--queue", str(tmp_path))
    with mock.patch("jsonqueue.channel.registration.operate", return_value=Report(True, RUNNING)):
        out = call("status", "--queue", str(tmp_path), terminal=terminal, columns=120, environment={"NO_COLOR": "1"}).out
    for words in (
        "running for 1 min 5 s, manager pid 812",
        "pid 813",
        "waiting, pid 814, 3 clients, 2 restarts: no room\\x1b[2J on it",
        "process-crash",
    ):
        assert words in out
    assert "the last checkpoint failed: no room \\x1b[2J" in out


def test_rates_come_from_two_looks() -> None:
    """A broker that was restarted counts from 0 again, which is no negative rate."""
    rates = Rates()
    rates.since_last({"a": 100}, 1_000)
    assert rates.since_last({"a": 300}, 3_000) == {"a": 100}
    assert rates.since_last({"a": 5}, 4_000) == {"a": 0}


def test_a_bar_is_as_long_as_it_is_wide() -> None:
    assert [bar(share, 4) for share in (-1, 0, 0.5, 1, 2)] == ["╌╌╌╌", "╌╌╌╌", "━━╌╌", "━━━━", "━━━━"]


def test_a_checkpoint_needs_no_broker(tmp_path: Path) -> None:
    """With none running the command does it itself; with --json for a script."""
    call("publish", "1", "--queue", str(tmp_path))
    called = call("checkpoint", "--queue", str(tmp_path))
    assert called.out.startswith("queue.json is up to date: ")
    assert "by this command" in called.out
    assert not [*tmp_path.glob("*.jsonl")]
    told = json.loads(call("checkpoint", "--json", "--queue", str(tmp_path)).out)
    assert told == {"queue_json_bytes": (tmp_path / "queue.json").stat().st_size}


@pytest.mark.parametrize("lock", ["queue", "published", "progress"])
def test_a_checkpoint_that_lost_a_lock_changes_nothing(tmp_path: Path, lock: str) -> None:
    """Somebody removed its file, and brokers may write to the logs by now that it would unlink."""
    call("publish", "1", "--queue", str(tmp_path))
    logs = {path.name for path in tmp_path.glob("*.jsonl")}

    def without_its_lock(files: Files, *, config: Config, at_ms: int) -> CheckpointDone:
        (tmp_path / f"{lock}.lock").unlink()
        return final_checkpoint(files, config=config, at_ms=at_ms)

    with mock.patch("jsonqueue.storage.checkpoint.final_checkpoint", without_its_lock):
        called = call("checkpoint", "--queue", str(tmp_path))
    assert (called.status, f"{lock}.lock was removed or replaced" in called.err) == (74, True)
    assert {path.name for path in tmp_path.glob("*.jsonl")} == logs
    assert not (tmp_path / "queue.json").exists()


def test_a_checkpoint_that_fails_says_that_nothing_is_lost(tmp_path: Path) -> None:
    call("publish", "1", "--queue", str(tmp_path))
    with mock.patch("jsonqueue.channel.registration.operate", return_value=Report(False, RUNNING, "no room")):
        called = call("checkpoint", "--queue", str(tmp_path))
    assert called.status == 74
    assert "the checkpoint failed: no room" in called.err
    assert "nothing is lost" in called.err


def test_stop_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    called = call("stop", "--queue", str(tmp_path / "nowhere"))
    assert (called.status, called.err.splitlines()[0]) == (66, f"Error: {tmp_path / 'nowhere'} does not exist")


def test_stop_has_only_so_much_patience_with_a_manager_that_does_not_answer(tmp_path: Path) -> None:
    """A suspended one: it is there, so it is not said that none is running, and the status says to try again."""
    call("publish", "1", "--queue", str(tmp_path))
    with mock.patch(
        "jsonqueue.channel.registration.operate", side_effect=BrokerUnavailable(str(tmp_path), cause="no answer", silent=True)
    ) as asked:
        with hold(tmp_path, "queue", what="the first one"):
            called = call("stop", "--timeout", "2", "--queue", str(tmp_path))
        assert asked.call_args.kwargs == {"timeout": 2}
        assert call("stop", "--timeout", "0", "--queue", str(tmp_path)).status == 69, "nobody is there"
        assert asked.call_args.kwargs["timeout"] > 0
    assert called.status == 75
    assert f"process {os.getpid()} (the first one) was told to stop, but has not answered after 2 s" in called.err


SILENT = BrokerUnavailable("q", cause="the manager did not answer in time", silent=True)
STOPPING = BrokerUnavailable("q")
"""As it comes where there is no socket (any more)."""
BUSY = BrokerUnavailable("q", cause="the consumer broker is not up: no room \x1b[2J")


@pytest.mark.parametrize("command", ["publish 1", "cancel x", "result x --wait", "dead replay --all", "checkpoint"])
@pytest.mark.parametrize(
    ("error", "what", "said"),
    [
        (SILENT, "BrokerManager", "does not answer (is it suspended?)"),
        (STOPPING, "BrokerManager", "is stopping"),
        (STOPPING, "jsonqueue repair", "is not done yet"),
        (BUSY, "BrokerManager", "cannot serve this: the consumer broker is not up: no room \\x1b[2J"),
    ],
)
def test_a_manager_that_does_not_answer_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, error: BrokerUnavailable, what: str, said: str
) -> None:
    """To start another one would lead nowhere. Who it is, what it does, and that it is worth another try."""
    call("publish", "--id", "x", "1", "--queue", str(tmp_path))
    for name in ("connect", "operate"):
        monkeypatch.setattr(f"jsonqueue.channel.registration.{name}", mock.Mock(side_effect=error))
    monkeypatch.setattr(Publisher.__init__, "__kwdefaults__", {**(Publisher.__init__.__kwdefaults__ or {}), "timeout": 0.0})
    monkeypatch.setattr("jsonqueue.storage.locks.time", SimpleNamespace(monotonic=count(step=5).__next__))
    with hold(tmp_path, "queue", what=what), hold(tmp_path, "published", what=what):
        called = call("--queue", str(tmp_path), *command.split())
    assert (called.status, called.out) == (75, "")
    assert called.err.startswith(f"Error: process {os.getpid()} ({what}) holds {tmp_path}, and {said}\nHint:  wait until")


@pytest.mark.parametrize(("error", "said"), [(SILENT, "does not answer (is it suspended?)"), (STOPPING, "is stopping")])
def test_status_tells_a_manager_that_is_stopping_from_none(tmp_path: Path, error: BrokerUnavailable, said: str) -> None:
    call("publish", "1", "--queue", str(tmp_path))
    with mock.patch("jsonqueue.channel.registration.operate", side_effect=error):
        assert "brokers         not running\n" in call("status", "--queue", str(tmp_path)).out
        with hold(tmp_path, "queue", what="BrokerManager"):
            assert f"held by process {os.getpid()} (BrokerManager), which {said}\n" in call("status", "--queue", str(tmp_path)).out
            told = json.loads(call("status", "--json", "--queue", str(tmp_path)).out)
    assert (told["running"], told["held_by"]) == (False, f"process {os.getpid()} (BrokerManager)")


def test_a_second_stop_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    """While it drains, the manager takes no calls any more; that is no reason to say that none is running."""
    call("publish", "1", "--queue", str(tmp_path))
    held = hold(tmp_path, "queue", what="BrokerManager")
    looks = iter([STOPPING, STOPPING])

    def refuse(*_: object, **__: object) -> None:
        if (error := next(looks, None)) is None:
            held.release()
        raise error or STOPPING

    with mock.patch("jsonqueue.channel.registration.operate", side_effect=refuse):
        called = call("stop", "--queue", str(tmp_path))
    assert (called.status, called.out) == (0, f"stopped manager {os.getpid()} of {tmp_path}\n")
    with mock.patch("jsonqueue.channel.registration.operate", side_effect=STOPPING), hold(tmp_path, "queue", what="BrokerManager"):
        called = call("stop", "--timeout", "0", "--queue", str(tmp_path))
    assert called.status == 75
    assert "but is still draining after 0 s" in called.err
    with mock.patch("jsonqueue.channel.registration.operate", side_effect=STOPPING), hold(tmp_path, "queue", what="jsonqueue repair"):
        called = call("stop", "--queue", str(tmp_path))
    assert (called.status, "(jsonqueue repair) holds" in called.err) == (75, True)


def test_a_farewell_says_what_queue_json_holds(tmp_path: Path) -> None:
    """Not everything, where it was stopped at once, or the last checkpoint could not be: then the logs belong to it."""
    call("publish", "1", "--queue", str(tmp_path))
    with mock.patch("jsonqueue.broker.manager.BrokerManager"):
        assert "holds everything" not in (said := call("serve", "--queue", str(tmp_path)).err)
        assert said.startswith(f"Stopped. What {tmp_path}/queue.json does not hold yet is in the logs beside it (")
        call("checkpoint", "--queue", str(tmp_path))
        assert call("serve", "--queue", str(tmp_path)).err.startswith(f"Stopped. {tmp_path}/queue.json holds everything (")


def test_a_summary_counts_what_a_handler_cancelled_as_such(tmp_path: Path) -> None:
    """It ended as the handler wished: no failed attempt, in words and as JSON."""
    consumer = SimpleNamespace(stats=ConsumerStats(completed=1, failed=5, cancelled=3), run=lambda: None)
    with mock.patch("jsonqueue.client.consumer.Consumer", return_value=consumer):
        said = call("work", "json:dumps").err
        told = json.loads(call("--json", "work", "json:dumps").out)
        consumer.stats.failed = 3
        alone = call("work", "json:dumps").err
    assert said.endswith(", 2 failed attempts, 3 cancelled.\n")
    assert (told["failed"], told["cancelled"]) == (2, 3)
    assert "failed" not in alone


def test_work_until_empty_ends_when_it_cannot_look(tmp_path: Path) -> None:
    """Files that are damaged meanwhile: else it would work on for ever, with nothing to do."""
    consumer = mock.Mock(queue_dir=tmp_path)
    ending = UntilEmpty(consumer)
    broken = CorruptQueue("queue.json", offset=7, why="a task there cannot be read")
    with mock.patch.object(ending, "_idle", return_value=True), mock.patch.object(ending, "_empty", side_effect=broken):
        ending.start()
        ending._thread.join(10)
    assert ending.error is broken
    consumer.stop.assert_called_once_with(None)


@pytest.mark.parametrize("command", ["stop", "cancel x", "dead replay --all"])
def test_what_needs_a_broker_says_how_to_start_one(tmp_path: Path, command: str) -> None:
    call("publish", "1", "--queue", str(tmp_path))
    called = call("--queue", str(tmp_path), *command.split())
    assert called.status == 69
    assert f"jsonqueue serve --queue {tmp_path}" in called.err


def test_hints_can_be_typed_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """A name with a space in it is one word to the shell."""
    queue_dir = tmp_path / "my queue"
    call("publish", "1", "--queue", str(queue_dir))
    assert call("stop", "--queue", str(queue_dir)).err.endswith(f"jsonqueue serve --queue '{queue_dir}'\n")
    queue_dir.chmod(0o770)
    assert call("publish", "1", "--queue", str(queue_dir)).status == 0, "its group is put right"
    queue_dir.chmod(0o707)
    assert call("publish", "1", "--queue", str(queue_dir)).err.endswith(f"chmod go-w '{queue_dir}'\n")


def test_a_hint_names_the_default_folder_where_another_one_would_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSONQUEUE_DIR names another: what is typed without --queue would look there."""
    monkeypatch.chdir(tmp_path)
    call("publish", "1", "--queue", "queue_data")
    for other, option in (("", ""), ("queue_data", ""), ("other", f" --queue {tmp_path}/queue_data")):
        called = call("show", "t", "--queue", "queue_data", environment={"JSONQUEUE_DIR": other})
        assert called.err.endswith(f"jsonqueue list{option}\n")


def test_verify_finds_nothing_in_a_whole_queue(tmp_path: Path) -> None:
    call("publish", "1", "--queue", str(tmp_path))
    called = call("verify", "--queue", str(tmp_path))
    assert (called.status, called.out) == (0, "All is well, 1 task.\n")
    assert call("repair", "--queue", str(tmp_path)).out.startswith("Nothing to mend, 1 task")


def test_verify_and_repair_tell_of_damage(tmp_path: Path) -> None:
    """Where, what, and what to do; 1 while something is left, 0 when it is mended. The text of a file is not trusted."""
    call("publish", "1", "--queue", str(tmp_path))
    bad = repair.Finding("queue.json", 12, 3, "evil \x1b[2J", "damaged-queue", False, "jsonqueue repair")
    note = bad._replace(harmless=True, batch=None)
    with mock.patch("jsonqueue.storage.repair.verify", return_value=repair.Report([bad, note], [], [], None)):
        called = call("verify", "--queue", str(tmp_path))
        told = json.loads(call("verify", "--json", "--queue", str(tmp_path)).out)
    assert called.status == 1
    assert "DAMAGE  queue.json, byte 12, batch 3: evil \\x1b[2J\n        → jsonqueue repair\n" in called.out
    assert called.out.endswith("1 place damaged.\n")
    assert (told["ok"], told["findings"][0]["offset"]) == (False, 12)
    with mock.patch("jsonqueue.storage.repair.repair", return_value=repair.Report([note], ["mended it"], ["task x"], 7)) as mend:
        called = call("repair", "--accept-loss", "--queue", str(tmp_path))
    assert mend.call_args.kwargs == {"accept_loss": True, "accept_edit": False}
    assert called.status == 0
    assert "done   mended it\nlost   task x\nMended, 7 tasks; 1 thing lost.\n" in called.out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere:f"], 64, "there is no module 'nowhere'"),
        (["json:nothing"], 64, "json has no 'nothing'"),
        (["json"], 64, "names no handler"),
        (["--exec", "no-such-program-at-all"], 64, "there is no program"),
        (["--exec", "cat | sort"], 64, "needs a shell"),
        (["--exec", "sleep 4; echo 1"], 64, "needs a shell"),
        ([], 2, "one of the two"),
        (["json:loads", "--exec", "cat"], 2, "not both"),
        (["json:loads", "--name", "a b"], 65, "invalid --name 'a b'\nHint:  a name is"),
        (["--exec", __file__], 64, f"{__file__} is not executable"),
    ],
)
def test_a_handler_that_cannot_be_run_is_told_at_once(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    called = call("work", "--queue", str(tmp_path), *arguments)
    assert called.status == status
    assert said in called.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def refuse():\n    raise RuntimeError('no\x1b[2J key')\n\nrefuse()\n", "RuntimeError: no\\x1b[2J key ({file}, line 2)"),
        ("def f(:\n", "SyntaxError: invalid syntax ({file}, line 1)"),
        ("\nfrom json import nothing\n", "ImportError: cannot import name 'nothing' from 'json'"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' ({file}, line 1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({file}, line 2)"),
        ("assert False\n", "AssertionError ({file}, line 1)"),
    ],
)
def test_a_module_that_fails_at_its_import_is_a_handler_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """Whatever its top level raises: which exception, in which file and line, and no word of a bug of ours."""
    (tmp_path / "failing_handlers.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    called = call("work", "failing_handlers:f", "--queue", str(tmp_path / "queue"))
    assert (called.status, called.out) == (64, "")
    assert called.err.startswith(f"Error: failing_handlers cannot be imported: {said.format(file=tmp_path / 'failing_handlers.py')}")
    assert "python3 -c 'import failing_handlers'" in called.err


def test_a_file_name_in_place_of_a_module_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_handlers.py").write_text("def f(task): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "without .py: my_handlers\n" in call("work", "my_handlers.py:f", "--queue", str(tmp_path / "queue")).err


@pytest.mark.processes
def test_a_queue_is_served_worked_off_and_stopped_from_the_shell(tmp_path: Path) -> None:
    """publish without brokers, serve, work with a function of the current folder and with a program, look, cancel, replay, stop."""
    (tmp_path / "tasks.py").write_text("def double(task):\n    return task.data * 2\n\n\ndef fail(task):\n    raise ValueError(task.id)\n")
    assert _run(tmp_path, "publish", "--id", "a", "21") == "a\n"
    line = _line("serve", "--set", "lease_ms=5000")
    serving = subprocess.Popen(line, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    with serving.stdout:
        assert serving.stdout.readline().startswith("serving ")
        assert json.loads(_run(tmp_path, "--json", "work", "tasks:double", "--until-empty"))["completed"] == 1
        assert _run(tmp_path, "result", "a", "--timeout", "5") == "42\n"
        _run(tmp_path, "publish", "--id", "b", '{"x": [1, 2]}')
        _run(tmp_path, "work", "--exec", "cat", "--until-empty")
        assert json.loads(_run(tmp_path, "result", "b"))["data"] == {"x": [1, 2]}
        _run(tmp_path, "publish", "--id", "c", "1", "--attempts-max", "1")
        _run(tmp_path, "work", "tasks:fail", "--until-empty", "--open-files", "64")
        assert [json.loads(line)["id"] for line in _run(tmp_path, "dead", "list", "--json").splitlines()] == ["c"]
        assert "ValueError: c" in _run(tmp_path, "dead", "show", "c")
        assert _run(tmp_path, "dead", "replay", "--all") == "c  replayed\n"
        assert _run(tmp_path, "cancel", "c") == "c  cancelled\n"
        seen = json.loads(_run(tmp_path, "status", "--json"))
        assert (seen["running"], seen["by_status"]["completed"], seen["by_status"]["cancelled"]) == (True, 2, 1)
        assert "by the running brokers" in _run(tmp_path, "checkpoint")
        assert _run(tmp_path, "stop").startswith("stopped manager ")
    assert serving.wait(10) == 0
    assert _run(tmp_path, "verify") == "All is well, 3 tasks.\n"
    listed = {json.loads(line)["status"] for line in _run(tmp_path, "list", "--json").splitlines()}
    assert listed == {TaskStatus.COMPLETED, TaskStatus.CANCELLED}


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_serve_goes_on_when_nobody_reads_what_it_announces(tmp_path: Path) -> None:
    """`serve | true`: it ended with 141, and without a word. Whoever wants the queue served is still there."""
    unread, out = os.pipe()
    os.close(unread)
    serve = subprocess.Popen(_line("serve", "--queue", "q"), cwd=tmp_path, env=_environment(), stdout=out, stderr=subprocess.PIPE)
    os.close(out)
    while serve.poll() is None and os.readlink(f"/proc/{serve.pid}/fd/1") != os.devnull:
        time.sleep(0.01)
    try:
        assert serve.returncode is None
        assert _run(tmp_path, "stop", "--queue", "q").startswith("stopped manager")
        assert serve.wait(30) == 0
        assert b"holds everything" in serve.stderr.read()  # type: ignore[union-attr]
    finally:
        serve.kill()
        serve.communicate()


def _run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(_line(*arguments), cwd=folder, env=_environment(), capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "jsonqueue", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_warning_does_not_run_into_the_line_that_changes_in_place(capsys):
    """The line is cleared for it, and it has a line of its own."""
    with LiveLine(lambda: "0 completed", watched=True, every_s=60):
        logging.getLogger("jsonqueue.manager").warning("waiting for %s", "\x1b[31mred")
    logging.getLogger("jsonqueue.manager").info("not of interest")
    assert capsys.readouterr().err.startswith("\r\x1b[K" + "waiting for \\x1b[31mred\n")
    assert not logging.getLogger("jsonqueue").handlers


def test_a_line_that_changes_in_place_outlives_a_moment_without_news(capsys: pytest.CaptureFixture[str]) -> None:
    """A manager that does not answer, or has just stopped, is no traceback in the middle of a terminal."""
    looks: list[str] = []
    seen = threading.Event()

    def text() -> str:
        looks.append("")
        if len(looks) == 1:
            raise BrokerUnavailable("q", cause="this BrokerManager has stopped")
        seen.set()
        return "2 ready"

    with LiveLine(text, watched=True, every_s=0.001):
        assert seen.wait(10)
    said = capsys.readouterr().err
    assert "2 ready" in said
    assert "Traceback" not in said


def test_a_terminal_that_is_gone_costs_nothing_but_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of a consumer that ended at once was an error there, and its program ran on."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            gone.set()
            raise OSError(errno.EIO, "Input/output error")

    gone = threading.Event()
    monkeypatch.setattr(sys, "stderr", Gone())
    with LiveLine(lambda: "working", watched=True, every_s=0.001) as line:
        assert gone.wait(10)
        logging.getLogger("jsonqueue.consumer").warning("connection lost")
        assert line._thread is not None
        assert line._thread.is_alive()


def test_a_line_that_changes_in_place_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of standard error; standard output may be a file. A line that is too long would leave itself behind at each change."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (25, 40))
    seen = threading.Event()
    with os.fdopen(writer, "w") as terminal, os.fdopen(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr("sys.stderr", terminal)
        with LiveLine(lambda: seen.set() or "word " * 40, watched=True, every_s=0.001):  # type: ignore[func-returns-value]
            assert seen.wait(10)
        shown = screen.read(4096).decode()
    assert len(unstyle(shown.split("\r\x1b[K")[1])) == 39


def test_what_a_handler_prints_goes_above_the_line_that_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line of its own, whoever prints it and in however many parts; until its end our line stays away."""
    reader, writer = os.openpty()
    with os.fdopen(writer, "w", buffering=1) as terminal, os.fdopen(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        shown, drawn = b"", threading.Semaphore(0)
        with LiveLine(lambda: drawn.release() or "the line", watched=True, every_s=0.001, shared=True):  # type: ignore[func-returns-value]
            for _ in range(2):
                drawn.acquire()  # it has been drawn once, at least
            print("said", "in", end=" ")
            for _ in range(3):
                drawn.acquire()
            print("parts", file=sys.stderr)
            assert sys.stdout.isatty()
        assert (sys.stdout, sys.stderr) == (terminal, terminal)
        while not shown.endswith(b"\r\x1b[K"):
            shown += screen.read(65536)
    lines = [line.rpartition("\r")[2] for line in unstyle(shown.decode()).split("\r\n")]
    assert lines == ["said in parts", ""]
