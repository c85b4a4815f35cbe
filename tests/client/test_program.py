"""Any program as a consumer."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec import Raw

from client.fakes import FakeBroker, Side, assign, delivered, settle, welcome
from client.test_children import await_that, gone
from client.test_consumer import at_work
from forking import told_by_a_fork
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.limits import Limits
from jsonqueue.client.outcome import NotStarted
from jsonqueue.client.program import Program, ProgramRunner, _end_all
from jsonqueue.clock import SystemClock
from jsonqueue.config import Config
from jsonqueue.errors import InvalidHandler
from jsonqueue.event import Complete, EventOwner, Failure, Heartbeat, Return


def runner_for(code: str, *, timeout: float | None = 20, **options: Any) -> ProgramRunner:
    """Runs Python code, so that the tests need no programs of the machine's."""
    program = Program([sys.executable, "-S", "-c", f"import sys, os\n{code}"], **options)
    return ProgramRunner(program, timeout=timeout, config=lambda: Config(payload_max_bytes=200_000))


def result(code: str, data: bytes = b"21", **options: Any) -> bytes:
    verdict = runner_for(code, **options).run(delivered(1, data))
    assert isinstance(verdict, Raw), verdict
    return bytes(verdict)


def failed(code: str, **options: Any) -> Failure:
    verdict = runner_for(code, **options).run(delivered(1))
    assert isinstance(verdict, Failure)
    return verdict


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ("", b"null"),
        (" \n", b"null"),
        ("[1, 2]\n", b"[1,2]"),
        ('{"a" : null}', b'{"a":null}'),
        ("0", b"0"),
        ("plain text\n", b'"plain text"'),
        ("two\nlines\n", b'"two\\nlines"'),
        ("NaN", b'"NaN"'),
        ("[1] [2]", b'"[1] [2]"'),
    ],
)
def test_the_output_is_the_result(output: str, kept: bytes) -> None:
    """JSON if it is JSON, nothing if there is none, else text."""
    assert result(f"sys.stdout.write({output!r})") == kept


def test_output_that_is_no_text_is_kept_as_far_as_it_can_be() -> None:
    assert result("sys.stdout.buffer.write(bytes([97, 255]))") == '"a\ufffd"'.encode()


def test_the_input_is_the_task() -> None:
    """All of it, as the queue has it."""
    assert result("import json; t = json.load(sys.stdin); print(t['id'], t['data'], t['attempt'])") == b'"t1 21 1"'


def test_the_environment_names_the_task() -> None:
    """Beside what it was given."""
    code = "print(os.environ['JSONQUEUE_TASK_ID'], os.environ['JSONQUEUE_ATTEMPT'], os.environ['COLOUR'])"
    assert result(code, env={"COLOUR": "red"}) == b'"t1 1 red"'


def test_it_runs_where_it_was_told_to(tmp_path: Path) -> None:
    assert result("print(os.getcwd())", cwd=tmp_path) == f'"{tmp_path.resolve()}"'.encode()


def test_large_input_and_output_cross(tmp_path: Path) -> None:
    """Neither side waits for the other with a full pipe."""
    data = b'"' + b"x" * 150_000 + b'"'
    code = "for line in iter(lambda: sys.stdin.read(1000), ''): sys.stderr.write(line)\nprint('y' * 190000)"
    assert len(result(code, data)) == 190_002


def test_input_that_nobody_reads_is_no_failure() -> None:
    assert result("print(1)", b'"' + b"x" * 150_000 + b'"') == b"1"


def test_a_want_of_processes_is_no_fault_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else keeps a program from starting is."""
    runner = runner_for("print(1)")
    with monkeypatch.context() as short:
        popen = mock.Mock(side_effect=BlockingIOError(errno.EAGAIN, "try again"))
        short.setattr(subprocess, "Popen", popen)
        with pytest.raises(NotStarted, match=r"could not be started.* try again"):
            runner.run(delivered(1))
        popen.side_effect = PermissionError(errno.EACCES, "not allowed")
        assert isinstance(runner.run(delivered(1)), Failure)
    assert runner.run(delivered(1)) == Raw(b"1")


def test_the_last_open_files_are_enough_for_a_program_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """To listen to it takes none."""
    monkeypatch.setattr(selectors, "DefaultSelector", mock.Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
    assert result("print(1)") == b"1"


def test_a_task_that_could_not_be_started_goes_back_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its attempt does not count; while the slot rests nothing is wanted for it; one line says why."""
    monkeypatch.setattr("jsonqueue.client.threads._FIRST_PAUSE_S", 0.001)
    short: list[Exception] = [OSError(errno.ENOMEM, "no memory"), BlockingIOError(errno.EAGAIN, "try again")]
    start = ProgramRunner._start

    def starts(self: ProgramRunner, task: Any) -> Any:
        if short:
            raise short.pop()
        return start(self, task)

    monkeypatch.setattr(ProgramRunner, "_start", starts)
    broker = FakeBroker(EventOwner.CONSUMER)
    with at_work(broker, Program([sys.executable, "-S", "-c", "print(7)"])):
        peer, _ = welcome(broker)
        for _ in range(2):
            peer.say(assign(1))
            returned = peer.hear(Return)
            assert (returned.ids, returned.tokens, returned.want) == (["t1"], [101], 0)
            settle(peer, returned)
            while peer.hear(Heartbeat).want != 1:
                pass
        peer.say(assign(1))
        done = peer.hear(Complete)
        assert (done.ids, bytes(done.results[0])) == (["t1"], b"7")
        settle(peer, done)
    (line,) = [record.getMessage() for record in caplog.records if "handed back" in record.getMessage()]
    assert "could not be started: [Errno 11] try again" in line
    broker.close()


def test_an_exit_status_is_a_failure_with_the_end_of_the_standard_error() -> None:
    failure = failed("sys.stderr.write('a' * 100000 + 'the end\\n'); sys.exit(3)")
    assert failure.error.endswith("the end\nexit status 3")
    assert len(failure.error) < 17_000
    assert failure.retry_after_ms is None


def test_75_means_not_now() -> None:
    """Tried again after a while, whatever the policy says."""
    failure = failed("sys.stderr.write('busy'); sys.exit(75)", retry_after=1.5)
    assert failure.retry_after_ms == 1500
    assert failure.error.endswith("busy")


def test_a_signal_is_a_failure() -> None:
    assert failed("os.kill(os.getpid(), 11)").error == "killed by SIGSEGV"


HELPER = "import subprocess; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"


def pid_in(error: str) -> int:
    return int(error.split("pid ")[1].split(maxsplit=1)[0])


class ClockThatLeaps(SystemClock):
    """An hour passes once the file is there: the test waits for the program, and not the other way round."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def monotonic_ms(self) -> int:
        return 3_600_000 if self._path.exists() else 0


def test_a_program_is_killed_at_its_time_limit_with_all_it_started(tmp_path: Path) -> None:
    """What it had said on its standard error is kept."""
    path = tmp_path / "ready"
    code = HELPER + f"sys.stderr.write(f'pid {{p.pid}} '); sys.stderr.flush(); open({str(path)!r}, 'w'); import time; time.sleep(600)"
    runner = runner_for(code, timeout=5)
    runner._clock = ClockThatLeaps(path)
    failure = runner.run(delivered(1))
    assert isinstance(failure, Failure)
    assert failure.error.startswith("timed out after 5 s, and was killed\n")
    await_that(lambda: gone(pid_in(failure.error)))


def test_a_program_that_closes_its_output_is_not_done() -> None:
    """It is done when it ends. (Should the machine be so slow that the limit comes before the closing, the outcome is the same.)"""
    code = "sys.stdout.write('1'); sys.stdout.flush(); os.close(1); os.close(2); import time; time.sleep(600)"
    assert failed(code, timeout=0.3).error == "timed out after 0.3 s, and was killed"


def test_a_program_that_closes_its_output_is_fed_to_the_end(tmp_path: Path) -> None:
    """One that writes to a file of its own, for one, and then reads more than the pipe to it holds."""
    heard = tmp_path / "heard"
    code = f"os.close(1); os.close(2); open({str(heard)!r}, 'w').write(str(len(sys.stdin.read())))"
    assert result(code, data=b'"' + b"x" * 300_000 + b'"') == b"null"
    assert int(heard.read_text()) > 300_000


def test_what_a_program_leaves_behind_does_not_hold_up_its_task() -> None:
    """It keeps the output open, but the program has ended; and then it goes as well."""
    verdict = result(HELPER + "print(p.pid)")
    await_that(lambda: gone(int(verdict)))


def test_too_much_output_is_a_failure_and_ends_it() -> None:
    """It is not gathered for as long as the program cares to talk."""
    assert failed("while True: sys.stdout.write('x' * 10000)").error.startswith("its output is more than 200,000 bytes")


def test_output_that_json_cannot_carry_is_a_failure() -> None:
    """Within the bytes, but beyond the depth."""
    assert "nested" in failed("print('[' * 100 + ']' * 100)").error


@pytest.mark.parametrize(
    ("command", "said"),
    [("no-such-program -v", "no program 'no-such-program'"), ("", "empty"), ("a 'b", "no command"), ("/tmp", "/tmp is a folder")],
)
def test_a_command_that_is_none_is_the_callers_to_know(command: str, said: str) -> None:
    with pytest.raises(InvalidHandler, match=said):
        Program(command)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retry_after": float("inf")}, "retry_after is inf"),
        ({"retry_after": "10"}, "retry_after is '10'"),
        ({"env": {"PORT": 8080}}, "8080 can be in no environment"),
        ({"env": {"A": "b\0c"}}, "give strings without NUL"),
        ({"env": {"A": "\ud800"}}, "can be in no environment"),
        ({"env": {"A=B": "c"}}, "'A=B' can be no name in an environment"),
        ({"env": ["A"]}, "env is ['A']"),
        ({"command": ["sh", 5]}, "5 can be no argument"),
        ({"command": ["sh", "\ud800"]}, "can be no argument"),
        ({"command": [5]}, "5 can be no argument"),
        ({"command": 5}, "5 is no command"),
        ({"cwd": 5}, "5 can be no folder"),
        ({"cwd": "a\0b"}, "can be no folder"),
    ],
)
def test_an_option_that_is_none_is_the_callers_to_know(options: dict[str, Any], said: str) -> None:
    """And does not stop the consumer with its first task, or the first that exits with 75."""
    with pytest.raises(InvalidHandler) as refused:
        Program(**{"command": "sh", **options})
    assert said in f"{refused.value}, {refused.value.hint}"


def test_a_command_is_split_and_not_run_by_a_shell() -> None:
    assert Program("sh -c 'echo a; echo b'").arguments == ["sh", "-c", "echo a; echo b"]
    assert Program("sh $HOME").arguments == ["sh", "$HOME"]
    assert Program("echo a | wc -l", shell=True).arguments == ["/bin/sh", "-c", "echo a | wc -l"]
    assert repr(Program("sh -c 'a b'")) == "Program(\"sh -c 'a b'\")"


def test_a_program_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    """Of this task; the consumer goes on."""
    runner = runner_for("", cwd=tmp_path / "nowhere")
    verdict = runner.run(delivered(1))
    assert isinstance(verdict, Failure)
    assert "could not be started" in verdict.error


def test_a_kill_ends_the_run_of_that_task_only(tmp_path: Path) -> None:
    """By SIGTERM, so that it can clear up; one that heeds nothing goes a second later."""
    ready = tmp_path / "ready"
    code = f"import signal, sys, time; signal.signal(15, {{}}); open({str(ready)!r}, 'w'); time.sleep(600)"
    for heeds, said in (
        ("lambda *_: (sys.stderr.write('cleared up'), sys.exit(3))", "cleared up\nexit status 3"),
        ("signal.SIG_IGN", "killed by SIGKILL"),
    ):
        runner = runner_for(code.format(heeds))
        side = Side(lambda runner=runner: runner.run(delivered(1)))  # type: ignore[misc]
        await_that(ready.exists)
        ready.unlink()
        runner.kill(100)
        assert side.running
        runner.kill(101)
        assert side.result().error == said


def test_with_no_thread_to_be_had_a_kill_is_without_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And raises nothing, where a consumer reads for all its slots."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ready = tmp_path / "ready"
    runner = runner_for(f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(600)")
    side = Side(lambda: runner.run(delivered(1)))
    await_that(ready.exists)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    runner.kill(101)
    assert side.result().error == "killed by SIGKILL"


@pytest.mark.parametrize("end", [lambda runner: runner.kill(101), lambda runner: runner.close()], ids=["revoked", "closed"])
def test_a_program_that_is_only_just_started_is_ended_too(monkeypatch: pytest.MonkeyPatch, end: Any) -> None:
    """Before it is there to be killed, it was said that it should be."""
    runner = runner_for("import time; time.sleep(60)", timeout=30)
    start = runner._start

    def start_late(task: Any) -> Any:
        end(runner)
        return start(task)

    monkeypatch.setattr(runner, "_start", start_late)
    verdict = runner.run(delivered(1))
    assert isinstance(verdict, Failure)
    assert verdict.error == "killed by SIGKILL"


def test_closing_kills_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    runner = runner_for(f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(600)")
    side = Side(lambda: runner.run(delivered(1)))
    await_that(ready.exists)
    runner.close()
    assert side.result().error == "killed by SIGKILL"


def test_a_consumer_runs_programs() -> None:
    broker = FakeBroker(EventOwner.CONSUMER)
    program = Program([sys.executable, "-S", "-c", "import sys, json; print(json.load(sys.stdin)['data'] * 2)"])
    with at_work(broker, program) as consumer:
        assert consumer.name.startswith("python")
        peer, _ = welcome(broker)
        peer.say(assign(21))
        assert [bytes(one) for one in peer.hear(Complete).results] == [b"42"]
    broker.close()


def test_the_end_of_its_process_ends_the_program_as_well(tmp_path: Path) -> None:
    """Of one that started a consumer and forgot to stop it: its task is delivered again at once, and would have been done by two."""
    code = f"""
import os, threading, time
from client.fakes import delivered
from client.test_program import runner_for
runner = runner_for("open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()) + chr(10)); import time; time.sleep(600)", timeout=None)
threading.Thread(target=runner.run, args=(delivered(1),), daemon=True).start()
while not (os.path.exists({str(tmp_path / "pid")!r}) and open({str(tmp_path / "pid")!r}).read()):
    time.sleep(0.01)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env=environment)
    pid = int((tmp_path / "pid").read_text())
    try:
        await_that(lambda: gone(pid))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_no_program_is_started_when_its_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot of one that was killed then asks for the next task."""
    ends = threading.Event()
    ends.set()
    monkeypatch.setattr("jsonqueue.client.program._ends", ends)
    with pytest.raises(NotStarted, match="this process ends"):
        runner_for("").run(delivered(1))


def test_the_end_of_what_its_process_has_forked_does_not(tmp_path: Path) -> None:
    """It has a copy of all that its parent holds."""
    os.mkfifo(tmp_path / "go")
    side = Side(lambda: result(f"open({str(tmp_path / 'up')!r}, 'w'); print(open({str(tmp_path / 'go')!r}).readline())"))
    await_that((tmp_path / "up").exists)
    told_by_a_fork(_end_all)
    go = os.open(tmp_path / "go", os.O_RDWR)
    os.write(go, b"7\n")
    assert side.result() == b"7"
    os.close(go)


def test_a_second_signal_ends_the_program_as_well(tmp_path: Path) -> None:
    """Nothing else would: it has a process group of its own, and its consumer is gone."""
    pid, ready = tmp_path / "pid", tmp_path / "ready"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); open({str(ready)!r}, 'w'); time.sleep(600)"
    broker = FakeBroker(EventOwner.CONSUMER)

    def play() -> None:
        peer, _ = welcome(broker)
        peer.say(assign(1))
        await_that(ready.exists)
        os.kill(os.getpid(), signal.SIGTERM)
        peer.hear(Return)
        os.kill(os.getpid(), signal.SIGTERM)

    side = Side(play)
    Consumer("queue_data", Program([sys.executable, "-S", "-c", code]), connect=broker.connect).run()
    side.result()
    await_that(lambda: gone(int(pid.read_text())))
    broker.close()


@pytest.mark.parametrize("limits", [None, Limits(cpu_s=60)])
def test_a_relative_program_is_meant_from_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits | None
) -> None:
    """Wherever this process goes later, and whatever folder it is to run in; that folder, too."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "x").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "x").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    programs = [Program("./x"), Program("./x", cwd="sub")]
    monkeypatch.chdir("/")
    for program, folder in zip(programs, ("/", str(tmp_path / "sub")), strict=True):
        verdict = ProgramRunner(program, timeout=20, config=Config, limits=limits).run(delivered(1))
        assert isinstance(verdict, Raw), verdict
        assert bytes(verdict) == f'"{folder}"'.encode()
    assert Program("sh -c true").path == "sh"
