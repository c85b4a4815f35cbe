"""Handlers in child processes: real ones, so that what is killed is really dead."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec import Raw

from client import handlers_for_children as handlers
from client.fakes import PATIENCE_S, FakeBroker, Side, assign, delivered, welcome
from client.test_consumer import at_work, await_beat
from jsonqueue.channel.pipe import Pipe
from jsonqueue.client.child import _on_term, _Run, _TimeIsUp
from jsonqueue.client.children import ChildRunner, says_how
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.handlers import Address, address_of
from jsonqueue.client.limits import Limits
from jsonqueue.client.outcome import NotStarted
from jsonqueue.client.threads import Threads
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed, InvalidHandler
from jsonqueue.event import Assign, Complete, EventOwner, Fail, Failure, Join, Revoke, encode


def runner_for(handler: Callable[[Any], Any], *, timeout: float | None = None) -> ChildRunner:
    return ChildRunner(address_of(handler), timeout=timeout, config=lambda: Config(payload_max_bytes=1000))


@pytest.fixture
def runners() -> Iterator[Callable[..., ChildRunner]]:
    made: list[ChildRunner] = []

    def make(handler: Callable[[Any], Any], **options: Any) -> ChildRunner:
        made.append(runner_for(handler, **options))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


def result(runner: ChildRunner, data: bytes = b"21") -> bytes:
    verdict = runner.run(delivered(1, data))
    assert isinstance(verdict, Raw), verdict
    return bytes(verdict)


def error(runner: ChildRunner, data: bytes = b"21") -> str:
    verdict = runner.run(delivered(1, data))
    assert isinstance(verdict, Failure)
    assert (verdict.id, verdict.token) == ("t1", 101)
    return verdict.error


def child_of(runner: ChildRunner) -> int:
    assert runner._process is not None
    return runner._process.pid


def gone(pid: int) -> bool:
    """Whether the process has ended: it is no more, or waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # The latter: between being opened and being read.
        return True
    except NotADirectoryError:
        return False
    return state in "ZX"


def await_that(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def told(path: Path) -> list[int]:
    """The pids that ``hang`` wrote."""
    await_that(lambda: path.exists() and path.read_text().endswith("\n"))
    return [int(pid) for pid in path.read_text().split()]


def test_one_child_runs_many_tasks(runners: Callable[..., ChildRunner]) -> None:
    """It is started once."""
    runner = runners(handlers.double)
    assert result(runner) == b"42"
    first = child_of(runner)
    assert result(runner, b'"ab"') == b'"abab"'
    assert child_of(runner) == first


@pytest.mark.parametrize("timeout", [30 * 86_400.0, float("inf")], ids=["a month", "infinite"])
def test_a_very_long_time_limit_is_one(runners: Callable[..., ChildRunner], timeout: float) -> None:
    """The kernel's own waits end at 24 days, and know no infinity."""
    assert result(runners(handlers.double, timeout=timeout)) == b"42"


def test_a_coroutine_runs_in_a_child_as_well(runners: Callable[..., ChildRunner]) -> None:
    assert result(runners(handlers.double_slowly)) == b'[42,"t1"]'


def test_a_path_among_the_places_of_modules_harms_nobody(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python passes over what is no string, and takes one that is no UTF-8."""
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, "/not/\udcff"])
    assert result(runners(handlers.double)) == b"42"


def test_a_relative_place_of_modules_stays_where_it_was(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The program has changed its directory since, and its child died."""
    (tmp_path / "places").mkdir()
    (tmp_path / "places" / "beside_it.py").write_text("def triple(task):\n    return task.data * 3\n")
    (tmp_path / "here.py").write_text("from beside_it import triple\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "places", *sys.path])
    runner = ChildRunner(Address("here", "triple"), timeout=None, config=Config)
    monkeypatch.chdir("/")
    assert result(runner) == b"63"
    runner.close()


@pytest.mark.parametrize(
    "said",
    [Complete(0, ["t1"], [100], [Raw(b"1")], 1), Fail(0, [Failure("t1", 100, "late")], 1), Fail(0, [], 1), Join("child", 1, 1), b"[1"],
    ids=lambda said: type(said).__name__,
)
def test_what_a_child_says_of_another_task_is_no_outcome_of_this_one(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    """A second fence: it has failed, under its own token, and the child is replaced."""
    runner = runners(handlers.double)
    runner.prepare()
    first = child_of(runner)
    assert runner._pipe is not None
    monkeypatch.setattr(runner._pipe, "receive", lambda timeout: [said if isinstance(said, bytes) else encode(said)])
    assert "said what is no outcome of this task" in error(runner)
    assert gone(first)
    assert result(runner) == b"42"


def test_what_is_no_frame_costs_its_task_and_nobody_else(runners: Callable[..., ChildRunner]) -> None:
    """Of a handler that writes to whatever is open, say. The whole consumer took no more tasks."""
    runner = runners(handlers.babble)
    runner.prepare()
    first = child_of(runner)
    assert "said what is no outcome of this task: a frame of" in error(runner)
    assert gone(first)


@pytest.mark.parametrize("said", [Fail(0, [], 1), Complete(0, ["t1"], [101], [Raw(b"1")], 1)], ids=lambda said: type(said).__name__)
def test_a_child_whose_first_word_is_none_did_not_start(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    """The other half of that fence; it ended the consumer."""
    runner = runners(handlers.double)
    with monkeypatch.context() as odd:
        odd.setattr(Pipe, "receive", lambda pipe, timeout: [encode(said)])
        assert f"cannot be loaded in a child process: it said {type(said).__name__}(" in error(runner)
    assert result(runner) == b"42"


def test_a_static_method_is_found_by_its_name(runners: Callable[..., ChildRunner]) -> None:
    assert result(runners(handlers.Tools.halve)) == b"10.5"


def test_an_exception_in_the_child_is_a_failure_with_its_traceback(runners: Callable[..., ChildRunner]) -> None:
    """And no reason for a new child."""
    runner = runners(handlers.boom)
    said = error(runner)
    assert "in boom" in said
    assert said.endswith("ValueError: no luck\n")
    first = child_of(runner)
    error(runner)
    assert child_of(runner) == first


def test_the_queues_limits_hold_for_a_childs_result(runners: Callable[..., ChildRunner]) -> None:
    """They are the parent's to know."""
    assert "2,002 bytes" in error(runners(handlers.large))


def test_a_child_that_dies_is_a_failure_and_is_replaced(runners: Callable[..., ChildRunner]) -> None:
    runner = runners(handlers.leave)
    assert error(runner) == "its handler's process died: exit status 7"
    assert error(runner) == "its handler's process died: exit status 7"


@pytest.mark.parametrize(("handler", "status"), [(handlers.end_a_fork, -signal.SIGTERM), (handlers.end_a_fork_our_way, 3)])
def test_what_a_handler_forks_ends_by_a_sigterm(runners: Callable[..., ChildRunner], handler: Callable[[Any], Any], status: int) -> None:
    """What the child makes of one, which is nothing, is for the child alone; what the handler makes of one is for what it forks, too."""
    assert int(result(runners(handler))) == status


def test_a_child_that_dies_is_missed_though_what_it_forked_lives_on(runners: Callable[..., ChildRunner]) -> None:
    """It had the child's end of the Pipe as well, so that nobody saw that it was closed."""
    assert error(runners(handlers.crash_beside_a_fork, timeout=5)) == "its handler's process died: killed by SIGKILL"


SHORT = [OSError(number, "none left") for number in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)]


@pytest.mark.parametrize("error", [*SHORT, MemoryError()], ids=repr)
def test_a_want_of_processes_is_no_fault_of_the_task(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It says so; and once there are some again, it runs."""
    runner = runners(handlers.double)
    with monkeypatch.context() as short:
        short.setattr(subprocess, "Popen", mock.Mock(side_effect=error))
        with pytest.raises(NotStarted, match="its handler's process did not start"):
            runner.run(delivered(1))
    assert result(runner) == b"42"


def test_what_else_keeps_a_child_from_starting_is_a_failure(runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be no other in a minute."""
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=FileNotFoundError(errno.ENOENT, "no python")))
    assert "no python" in error(runners(handlers.double))


@pytest.fixture
def no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the children, from their beginning on."""
    (tmp_path / "sitecustomize.py").write_text(
        'import threading\ndef none(self):\n    raise RuntimeError("can\'t start new thread")\nthreading.Thread.start = none\n'
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("limits", [None, Limits(cpu_s=60)])
def test_a_child_that_gets_no_thread_is_not_at_fault_either(limits: Limits | None) -> None:
    """It was the last process that was to be had."""
    runner = ChildRunner(address_of(handlers.double), timeout=None, config=Config, limits=limits)
    with pytest.raises(NotStarted, match="can't start new thread"):
        runner.run(delivered(1))
    assert runner._process is None
    runner.close()


@pytest.mark.usefixtures("no_thread")
def test_a_child_that_gets_no_thread_by_its_own_limit_has_failed() -> None:
    runner = ChildRunner(address_of(handlers.double), timeout=None, config=Config, limits=Limits(processes=2**40))
    assert error(runner).endswith("can't start new thread (limit: processes 1,099,511,627,776)")
    runner.close()


WANTS = [
    'raise RuntimeError("can\'t start new thread")',
    "raise MemoryError",
    "raise OSError(24, 'Too many open files')",
    "import errno\nraise OSError(errno.ENOMEM, 'x') from None",
]


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize("text", WANTS)
def test_a_child_that_cannot_load_its_handler_for_want_is_not_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, script: bool
) -> None:
    """What it imports found no memory, or no open file: in a minute it may. Unless the limit is its own, or it is something else."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "in_want.py").write_text(text)
    address = Address("in_want", "double", script=str(tmp_path / "in_want.py") if script else "")
    with pytest.raises(NotStarted, match="its handler's process did not start"):
        ChildRunner(address, timeout=None, config=Config, limits=None).run(delivered(1))
    for limits in (Limits(open_files=200), Limits(memory_bytes=2**40)):
        limited = ChildRunner(address, timeout=None, config=Config, limits=limits)
        assert "cannot be loaded in a child process" in error(limited)
    (tmp_path / "in_want.py").write_text("raise OSError(2, 'No such file')")
    assert "cannot be loaded in a child process" in error(ChildRunner(address, timeout=None, config=Config, limits=None))


def test_a_child_is_killed_at_its_time_limit_with_all_it_started(runners: Callable[..., ChildRunner], tmp_path: Path) -> None:
    """SIGTERM ignored, a process of its own at work: nothing of it is left."""
    runner = runners(handlers.hang, timeout=2.0)
    said = error(runner, f'"{tmp_path}/pids"'.encode())
    assert said == "timed out after 2 s, and was killed"
    await_that(lambda: all(gone(pid) for pid in told(tmp_path / "pids")))
    assert runner._process is None


def test_starting_does_not_count_against_the_time_limit(runners: Callable[..., ChildRunner]) -> None:
    """A child takes longer to start than this task may."""
    runner = runners(handlers.double, timeout=1.0)
    runner.prepare()
    runner._timeout = 0.5
    assert result(runner) == b"42"


def test_a_revoked_run_may_clear_up(tmp_path: Path) -> None:
    """As at a time limit: SIGTERM, for what it has started too, and `finally` runs. The next task runs in a new child."""
    broker = FakeBroker(EventOwner.CONSUMER)
    with at_work(broker, handlers.tidy, isolate=True):
        peer, _ = welcome(broker)
        for number in (1, 2):
            path = tmp_path / f"pids-{number}"
            peer.say(Assign([delivered(number, f'"{path}"'.encode())]))
            pids = told(path)
            peer.say(Revoke([f"t{number}"], [100 + number]))
            assert told(path.with_name(f"{path.name}.cleared")) == [-signal.SIGTERM, True]
            await_that(lambda pids=pids: all(gone(pid) for pid in pids))  # type: ignore[misc]
    broker.close()


@pytest.mark.parametrize("handler", [handlers.tidy_slowly, handlers.tidy_busily, handlers.tidy_rudely])
def test_a_coroutine_may_clear_up_in_a_child_too(tmp_path: Path, handler: Callable[[Any], Any]) -> None:
    """It is told while its loop waits, and not it, or in the midst of either; its own `finally`, with what it awaits, runs all the same."""
    broker = FakeBroker(EventOwner.CONSUMER)
    with at_work(broker, handler, isolate=True):
        peer, _ = welcome(broker)
        path = tmp_path / "pid"
        peer.say(Assign([delivered(1, f'"{path}"'.encode())]))
        told(path)
        peer.say(Revoke(["t1"], [101]))
        assert told(path.with_name("pid.cleared")) == [0]
    broker.close()


def test_a_coroutine_that_cancels_itself_in_a_child_has_failed(runners: Callable[..., ChildRunner]) -> None:
    """And no reason for a new child."""
    runner = runners(handlers.cancel_itself)
    assert error(runner) == "the handler was cancelled"
    first = child_of(runner)
    error(runner)
    assert child_of(runner) == first


def test_a_handler_that_clears_up_is_not_told_again() -> None:
    """SIGTERM may come twice, from within and from the parent: the second one does nothing."""
    here = _Run(delivered(1), cancelled=True)
    with pytest.raises(_TimeIsUp):
        _on_term(here)
    _on_term(here)


def test_a_coroutine_is_told_by_its_loop_unless_it_holds_that_up() -> None:
    """An exception in the midst of the loop's own code would be lost."""
    asked: list[int] = []
    here = _Run(delivered(1), cancelled=True)
    here.cancel = lambda: asked.append(here.asked)
    for _ in range(4):
        _on_term(here)
    assert asked == [1, 2, 3, 4]
    with pytest.raises(_TimeIsUp):
        _on_term(here)


def test_a_revoked_run_that_heeds_nothing_is_killed(tmp_path: Path) -> None:
    """And its place is taken by a new child."""
    broker = FakeBroker(EventOwner.CONSUMER)
    with at_work(broker, handlers.hang, isolate=True) as consumer:
        peer, _ = welcome(broker, lease_ms=100)
        peer.say(Assign([delivered(1, f'"{tmp_path}/pids"'.encode())]))
        pids = told(tmp_path / "pids")
        peer.say(Revoke(["t1"], [101]))
        await_beat(peer, [])
        await_that(lambda: all(gone(pid) for pid in pids))
        await_that(lambda: consumer.stats.stale == 1)
    broker.close()


@pytest.mark.parametrize("want", ["a thread", "a reader"])
def test_a_run_that_cannot_be_told_is_killed(
    runners: Callable[..., ChildRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, want: str
) -> None:
    """No thread is to be had, or the child is stopped and does not read: then without a word."""
    runner = runners(handlers.hang)
    side = Side(lambda: error(runner, f'"{tmp_path}/pids"'.encode()))
    pids = told(tmp_path / "pids")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread") if want == "a thread" else ConnectionClosed("the other end did not read for 1 s")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start" if want == "a thread" else "jsonqueue.channel.pipe.Pipe.send", refuse)
        runner.kill(101)
        assert "killed by SIGKILL" in side.result()
    await_that(lambda: all(gone(pid) for pid in pids))


def test_a_task_that_is_revoked_while_its_child_starts_never_runs(
    runners: Callable[..., ChildRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load a handler may take a minute, and the handler an hour. The child is there for the next task."""
    runner = runners(handlers.double)
    greet = runner._greet

    def greet_late() -> None:
        runner.kill(101)
        greet()

    monkeypatch.setattr(runner, "_greet", greet_late)
    assert error(runner) == "it was revoked before it began"
    verdict = runner.run(delivered(2, b"4"))
    assert isinstance(verdict, Raw)
    assert bytes(verdict) == b"8"


def test_a_kill_for_another_task_harms_nobody(runners: Callable[..., ChildRunner]) -> None:
    """By the time it comes, the next task may be running."""
    runner = runners(handlers.double)
    runner.prepare()
    runner.kill(100)
    assert result(runner) == b"42"


def test_a_consumer_in_children_sends_results(tmp_path: Path) -> None:
    broker = FakeBroker(EventOwner.CONSUMER)
    with at_work(broker, handlers.double, timeout=20, concurrency=2):
        peer, _ = welcome(broker)
        peer.say(assign(1, 2, 3))
        results: dict[str, bytes] = {}
        while len(results) < 3:
            complete = peer.hear(Complete)
            results.update(zip(complete.ids, map(bytes, complete.results), strict=True))
        assert results == {"t1": b"2", "t2": b"4", "t3": b"6"}
    broker.close()


def closure() -> Callable[[Any], Any]:
    def inner(task: Any) -> Any:
        return task

    return inner


class Stateful:
    def handle(self, task: Any) -> Any:
        return task


@pytest.mark.parametrize("handler", [lambda task: task, closure(), Stateful().handle, functools.partial(handlers.double)])
def test_what_a_child_could_not_find_is_refused(handler: Any) -> None:
    """At once, and not in the child."""
    with pytest.raises(InvalidHandler, match="find it by name"):
        Consumer("queue_data", handler, isolate=True)


def test_a_handler_that_the_child_cannot_load_is_the_callers_to_know() -> None:
    """start() raises what the child said."""
    runner = ChildRunner(Address("no_such_module", "f"), timeout=None, config=Config)
    with pytest.raises(InvalidHandler, match="no module 'no_such_module'"):
        runner.prepare()
    broken = ChildRunner(Address("client.fakes", "welcome.no"), timeout=None, config=Config)
    with pytest.raises(InvalidHandler, match="has no"):
        broken.prepare()


SCRIPT = """
import sys, threading
sys.path[:0] = {path}
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import address_of
from jsonqueue.config import Config
from client.fakes import delivered

def handler(task):
    if task.data == "hang":
        print("hanging", flush=True)
        threading.Event().wait()
    return [task.data, __name__]

if __name__ == "__main__":
    runner = ChildRunner(address_of(handler), timeout=None, config=Config)
    print(bytes(runner.run(delivered(1))).decode(), runner._process.pid, flush=True)
    if sys.argv[1:]:
        runner.run(delivered(2, b'"hang"'))
    runner.close()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "a script.py"
    path.write_text(SCRIPT.format(path=sys.path))
    return path


def test_a_handler_in_the_program_itself_is_found_by_its_file(script: Path) -> None:
    """Loaded under another name, so that the program does not run twice."""
    run = subprocess.run([sys.executable, script], capture_output=True, check=True, timeout=PATIENCE_S, text=True)
    assert run.stdout.startswith('[null,"__jsonqueue_script__"]')


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    """Its child runs it from the top, and would start a consumer as well."""
    path = tmp_path / "careless.py"
    path.write_text("from jsonqueue import Consumer\ndef handler(task): ...\nConsumer('q', handler, isolate=True).start()\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, path], capture_output=True, timeout=PATIENCE_S, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert run.returncode == 1
    assert "if __name__" in run.stderr


def test_a_child_does_not_outlive_its_parent(script: Path) -> None:
    """Even if the parent is killed and the handler never ends."""
    with subprocess.Popen([sys.executable, script, "hang"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline().split()[-1])
        assert parent.stdout.readline() == "hanging\n"
        assert not gone(child)
        parent.kill()
        await_that(lambda: gone(child))


HANGS = """
import os, signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
threading.Event().wait()
"""
WAITS_FOR_IT = """
import sys
sys.path[:] = {path}
from jsonqueue.client.children import ChildRunner
from jsonqueue.client.handlers import Address
from jsonqueue.config import Config
ChildRunner(Address("hangs", "handler"), timeout=None, config=Config).prepare()
"""


def test_a_child_whose_module_hangs_at_its_import_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """It reads its Pipe from before that."""
    (tmp_path / "hangs.py").write_text(HANGS)
    code = WAITS_FOR_IT.format(path=[str(tmp_path), *sys.path])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            await_that(lambda: gone(child))
        finally:
            if not gone(child):
                os.kill(child, signal.SIGKILL)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ChildRunner]]:
    """A runner of the function ``handler`` of a module that reads like this."""
    monkeypatch.syspath_prepend(tmp_path)
    runner = ChildRunner(Address("given", "handler"), timeout=5.0, config=Config)

    def make(text: str) -> ChildRunner:
        (tmp_path / "given.py").write_text(text)
        return runner

    yield make
    runner.close()


@pytest.mark.parametrize("end", ["", "if not FORKED: raise ValueError('of the fork alone')"], ids=["comes back", "fails"])
def test_what_a_module_forks_at_its_import_ends_where_it_comes_back(module: Callable[[str], ChildRunner], end: str) -> None:
    """It has no thread that listens, and the Pipe is not its own; the child itself serves on."""
    runner = module(f"import os\nFORKED = os.fork()\n{end}\ndef handler(task): return FORKED")
    forked, first = int(result(runner)), child_of(runner)
    await_that(lambda: gone(forked))
    result(runner)
    assert child_of(runner) == first


def test_a_signal_that_a_module_blocks_at_its_import_waits_for_its_handler(module: Callable[[str], ChildRunner]) -> None:
    """The thread that listens was there before, and does not take it: that would end the process."""
    text = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def handler(task):
    os.kill(os.getpid(), signal.SIGUSR1)
    return signal.sigwait({signal.SIGUSR1})
"""
    assert int(result(module(text))) == signal.SIGUSR1


def test_a_child_does_not_outlive_its_parent_though_what_that_one_forked_lives_on(runners: Callable[..., ChildRunner]) -> None:
    """A copy of the parent's end of the Pipe was open still."""
    runner = runners(handlers.double)
    runner.prepare()
    child = child_of(runner)
    assert runner._pipe is not None
    forked = os.fork()
    if not forked:
        signal.pause()
    try:
        runner._pipe.let_go()  # as when the parent is killed
        await_that(lambda: gone(child))
    finally:
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_an_idle_child_that_something_keeps_does_not_outlive_its_parent_either(runners: Callable[..., ChildRunner]) -> None:
    """It ends as a program does, but does not wait for ever for a thread that its handler has left behind."""
    runner = runners(handlers.leave_a_thread_behind)
    result(runner)
    child = child_of(runner)
    assert runner._pipe is not None
    runner._pipe.close()  # as if the parent had been killed
    await_that(lambda: gone(child))


def test_an_interactive_function_is_refused() -> None:
    """There is no file to find it in."""
    code = (
        "from jsonqueue.client.handlers import address_of\ndef f(task): ...\ntry: address_of(f)\nexcept ValueError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=PATIENCE_S, text=True, env=environment)
    assert "interactive session" in run.stdout


def test_closing_ends_an_idle_child_in_peace_and_a_busy_one_by_force(tmp_path: Path) -> None:
    idle = runner_for(handlers.double)
    result(idle)
    process = idle._process
    assert process is not None
    idle.close()
    assert process.returncode == 0

    busy = runner_for(handlers.hang)
    side = Side(lambda: error(busy, f'"{tmp_path}/pids"'.encode()))
    pids = told(tmp_path / "pids")
    busy.close()
    await_that(lambda: all(gone(pid) for pid in pids))
    assert "died" in side.result()


def test_how_a_process_ended_in_words() -> None:
    assert says_how(3) == "exit status 3"
    assert says_how(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert says_how(-99) == "killed by signal 99"


def test_a_consumer_that_is_stopped_while_its_child_loads_the_handler_has_not_failed(
    module: Callable[[str], ChildRunner], tmp_path: Path
) -> None:
    """Its run() returns, as whenever another thread stops it."""
    runner = module(f"import threading\nopen({str(tmp_path / 'loads')!r}, 'w').write('0\\n')\nthreading.Event().wait()")
    consumer = Consumer(tmp_path, handlers.double, isolate=True)
    consumer._crew = Threads(consumer._session, consumer._holdings.slots, [runner])
    side = Side(consumer.run)
    told(tmp_path / "loads")
    assert consumer.stop() is True
    side.result()
    assert consumer.state == "stopped"


def test_a_consumer_whose_child_cannot_load_the_handler_says_that_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads were never started, and need not be waited for."""

    def only_here(task: Any) -> None: ...

    only_here.__module__, only_here.__qualname__ = handlers.__name__, "only_here"
    monkeypatch.setattr(handlers, "only_here", only_here, raising=False)
    consumer = Consumer(tmp_path, only_here, isolate=True)
    with pytest.raises(InvalidHandler, match="has no"):
        consumer.start()
