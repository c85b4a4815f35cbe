"""jsonqueue bench: it measures, says what it measured, and leaves nothing behind. No figure is judged here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from jsonqueue.cli.app import run
from jsonqueue.cli.bench import actors, stage
from jsonqueue.cli.bench.command import _COUNTS
from jsonqueue.cli.bench.figures import Figure, median_of_runs, spread_of
from jsonqueue.cli.bench.measures import MEASURES, Measuring, _latency_meanwhile
from jsonqueue.cli.bench.plot import svg_of
from jsonqueue.cli.bench.report import shown
from jsonqueue.cli.bench.stage import _STILL_S, Actor, ActorFailed, Stage, Stalled
from jsonqueue.cli.processes import start


def _figure(value: float, x: float | None = None, unit: str = "tasks/s") -> Figure:
    return Figure("drain", "2 consumers", value, unit, 0.2, x)


def test_several_runs_come_down_to_their_median() -> None:
    """The single values stay beside it."""
    (merged,) = median_of_runs([[_figure(8.0)], [_figure(1.0)], [_figure(3.0)]])
    assert (merged.value, merged.runs) == (3.0, [8.0, 1.0, 3.0])


def test_the_details_of_several_runs_are_those_of_the_one_in_the_middle() -> None:
    """Beside the median stands what belongs to it, not what the first run happened to meet."""
    for values, middle in (((8.0, 1.0, 3.0), 3.0), ((8.0, 1.0), 1.0)):
        (merged,) = median_of_runs([[Figure("latency", "p99", value, "ms", 0.2, None, [], {"max_ms": 10 * value})] for value in values])
        assert merged.detail == {"max_ms": 10 * middle}


def test_a_latency_that_nothing_was_measured_of_is_no_figure(tmp_path: Path) -> None:
    """A checkpoint may be over before the next task comes: 0 ms would be a lie."""
    run = Measuring(tmp_path, tasks=50, workers=1, batches=())
    assert _latency_meanwhile(run, 1_000, spread_of([])) == []
    (figure,) = _latency_meanwhile(run, 1_000, spread_of([2.0]))
    assert (figure.value, figure.detail["count"]) == (2.0, 1)


def test_figures_of_a_series_are_kept_apart() -> None:
    """The same measure at another backlog is another figure."""
    assert [figure.x for figure in median_of_runs([[_figure(3.0, 1.0), _figure(2.0, 10.0)]])] == [1.0, 10.0]


def test_a_spread_of_nothing_is_none() -> None:
    """No sample, no figure; and no error."""
    assert spread_of([]) == {"p50": 0.0, "p99": 0.0, "max": 0.0, "count": 0}


@pytest.mark.parametrize(("value", "text"), [(126_927.4, "126,927"), (12.34, "12.3"), (0.731, "0.73")])
def test_a_figure_has_as_many_digits_as_say_something(value: float, text: str) -> None:
    """More would be noise."""
    assert shown(value) == text


def test_a_plot_is_well_formed_and_names_every_figure() -> None:
    """Bars and series in one SVG, with what is special to XML escaped."""
    odd = Figure("publish", "a < b & c", 5.0, "ms", 0.2)
    drawing = svg_of([_figure(3.0), odd, _figure(4.0, 1_000.0), _figure(4.5, 1_000_000.0)])
    texts = [text.text for text in fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert {"publish", "a < b & c", "5 ms", "drain", "2 consumers", "3 tasks/s", "1,000", "1,000,000"} <= set(texts)


def test_the_axis_of_a_plot_has_round_values() -> None:
    """From nothing up to the largest value or just beyond."""
    drawing = svg_of([_figure(278_000.0, 1_000.0), _figure(307_000.0, 1_000_000.0)])
    texts = [text.text for text in fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text and (text.endswith(" k") or text == "0")] == ["0", "100 k", "200 k", "300 k", "400 k"]


def test_a_png_without_matplotlib_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra of its own, and an SVG needs nothing."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["bench", "--plot", "figures.png"]) == 2
    assert "pip install 'jsonqueue[plot]', or name a .svg" in " ".join(capsys.readouterr().err.split())


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong name costs no minute of measuring."""
    assert run(["bench", "--plot", "figures.gif"]) == 2
    assert "must end in .svg or .png" in capsys.readouterr().err
    assert run(["bench", "--plot", "not-there/figures.svg"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a disk that is only to be read
    assert run(["bench", "--plot", str(tmp_path / "figures.svg")]) == 2
    assert "no file can be made in this folder" in " ".join(capsys.readouterr().err.split())


class _Queue(Stage):
    """A queue that settles so many tasks in a second, on a clock of its own."""

    def __init__(self, settled_at: Callable[[float], float]) -> None:
        super().__init__(Path())
        self.now = 0.0
        self.settled_at = settled_at

    def status(self) -> dict[str, Any]:
        return {"settled": int(self.settled_at(self.now))}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _waited(monkeypatch: pytest.MonkeyPatch, settled_at: Callable[[float], float]) -> _Queue:
    queue = _Queue(settled_at)
    monkeypatch.setattr("jsonqueue.cli.bench.stage.time", queue)
    return queue


def test_a_benchmark_waits_for_a_slow_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, as long as there is progress."""
    queue = _waited(monkeypatch, lambda now: now / _STILL_S * 2)
    assert queue.await_settled(20)[1] == 20
    assert queue.now >= 10 * _STILL_S


def test_a_benchmark_that_stands_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited without limit for what would never come."""
    queue = _waited(monkeypatch, lambda now: min(now, 5))
    with pytest.raises(Stalled, match="none of 15 tasks was settled"):
        queue.await_settled(20)
    assert _STILL_S < queue.now < _STILL_S + 10


def test_a_benchmark_whose_broker_was_lost_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that takes its place counts from zero: what is waited for would be more than there is."""
    queue = _waited(monkeypatch, lambda now: now if now < 10 else now - 10)
    with pytest.raises(Stalled, match="started anew"):
        queue.await_settled(20)
    assert queue.now < 11


@pytest.mark.processes
def test_a_benchmark_notices_the_end_of_its_processes(tmp_path: Path) -> None:
    """Of a publisher, say, while its tasks are waited for."""
    queue = _Queue(lambda now: 0)
    publisher = Actor("publisher", tmp_path / "queue")
    queue._actors.append(publisher)
    publisher._process.kill()
    publisher._process.wait()
    try:
        with pytest.raises(ActorFailed, match=r"the publisher of the benchmark \(pid \d+\) ended before its time, signal SIGKILL"):
            queue.await_settled(20)
    finally:
        publisher.end()


def _playing(monkeypatch: pytest.MonkeyPatch, code: str) -> Actor:
    """A publisher that does nothing but this."""

    def start(*_: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", f"import json, os, signal, sys\n{code}"], stdin=-1, stdout=-1)

    monkeypatch.setattr(stage, "start", start)
    return Actor("publisher", Path())


@pytest.mark.processes
def test_the_end_of_a_process_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what it had started (of a queue: its brokers) holds its Pipe open, and what it said before is heard."""
    actor = _playing(
        monkeypatch, "child = os.fork()\nif not child:\n    signal.pause()\nprint(json.dumps([child]), flush=True)\nos._exit(3)"
    )
    child: list[int] = []
    try:
        child += actor.hear()
        with pytest.raises(ActorFailed, match=r"the publisher of the benchmark \(pid \d+\) ended before its time, exit status 3"):
            actor.hear()
    finally:
        for pid in child:
            os.kill(pid, signal.SIGKILL)
        actor.kill()


@pytest.mark.processes
def test_a_process_that_says_nothing_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs was waited for without limit; one that says how far it is, is heard to its end."""
    monkeypatch.setattr(stage, "_SILENT_S", 0.0)
    monkeypatch.setattr(stage, "_LOOK_S", 0.01)
    actor = _playing(monkeypatch, "signal.pause()")
    try:
        with pytest.raises(Stalled, match=r"the publisher of the benchmark \(pid \d+\) has said nothing for"):
            actor.hear()
    finally:
        actor.kill()
    monkeypatch.setattr(stage, "_SILENT_S", 30.0)
    actor = _playing(monkeypatch, """print('{"so_far":1}\\n{"so_far":2}\\n{"ended":3}\\n{"ended":4}', flush=True)""")
    try:
        assert [actor.hear(), actor.hear()] == [{"ended": 3}, {"ended": 4}]
    finally:
        actor.end()


@pytest.mark.parametrize("do", ["bulk", "singly"])
def test_a_publisher_says_how_far_it_is(do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its order may take hours, as many tasks as somebody wants."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(actors, "_say", said.append)
    monkeypatch.setattr(actors, "_TELL_EVERY_S", -1.0)
    told = getattr(actors.PublisherActor(str(tmp_path / "queue")), do)({"tasks": 3})
    assert told["ended"] >= told["began"]
    assert [*said[-1]] == ["so_far"]


def test_who_wants_a_benchmark_to_end_twice_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second Ctrl-C, while one that hangs is waited for, ends all by force; none is left behind, and no file."""
    ended: list[str] = []

    class Hanging(Actor):
        def __init__(self, role: str) -> None:
            self.role = role

        def end(self) -> None:
            raise KeyboardInterrupt

        def kill(self) -> None:
            ended.append(self.role)

    queue = _Queue(lambda now: 0)
    queue.root = tmp_path / "root"
    queue.root.mkdir()
    queue._actors += [Hanging("queue"), Hanging("consumer")]
    with pytest.raises(KeyboardInterrupt):
        queue.__exit__(None, None, None)
    assert (ended, queue.root.exists()) == (["consumer", "queue"], False)


@pytest.mark.processes
def test_a_process_that_somebody_suspended_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C waited for it as for one that hangs, 30 s, and then killed it."""
    monkeypatch.setattr(stage, "_END_S", 20.0)
    actor = _playing(monkeypatch, "print(json.dumps([]), flush=True)\nsys.stdin.read()")
    try:
        actor.hear()
        os.kill(actor.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, actor.pid, os.WSTOPPED | os.WNOWAIT)
        actor.end()
        assert actor._process.returncode == 0
    finally:
        actor.kill()


@pytest.mark.processes
def test_no_process_outlives_a_benchmark_that_was_killed(tmp_path: Path) -> None:
    """In the midst of a billion tasks its publisher hears that nobody waits for them any more (kill -9 does not tell it), and ends."""
    publisher = Actor("publisher", tmp_path / "queue")
    try:
        publisher.hear()
        publisher.tell("singly", tasks=1_000_000_000)
        assert publisher._process.stdin is not None
        publisher._process.stdin.close()
        assert publisher._process.wait(10) == 1
    finally:
        publisher.kill()


def test_of_each_measure_it_is_known_which_options_count() -> None:
    """One that is left out would refuse none, or all."""
    assert set(_COUNTS) == set(MEASURES)


@pytest.mark.processes
def test_a_measurement_prints_its_figures_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each figure with its unit and the fdatasync of the disk beside it; the queues it made are gone."""
    plot = tmp_path / "figures.svg"
    assert (
        run(["bench", "publish", "both", "--batch", "--tasks", "50", "--folder", str(tmp_path / "here"), "--plot", str(plot), "--json"])
        == 0
    )
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(figure["measure"], figure["unit"]) for figure in figures] == [("publish", "tasks/s"), ("both", "tasks/s")]
    assert all(figure["value"] > 0 and figure["sync_ms"] > 0 for figure in figures)
    assert not list((tmp_path / "here").iterdir())
    assert plot.read_text().startswith("<svg")


@pytest.mark.processes
def test_what_a_start_and_a_task_cost_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a crash and after a stop, with the memory of each process; and all bytes of a task's life, which are more than its line."""
    assert run(["bench", "restart", "written", "drain", "--batch", "--tasks", "50", "--folder", str(tmp_path / "here"), "--json"]) == 0
    figures = {(figure["measure"], figure["name"]): figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert figures["restart", "50 waiting, after a crash"]["value"] > 0
    assert figures["restart", "50 waiting, after a clean stop"]["detail"]["files"]
    assert {name for measure, name in figures if name.startswith("memory of the")} == {
        f"memory of the {who}, {what}" for who in ("manager", "publisher broker", "consumer broker") for what in ("empty", "a waiting task")
    }
    assert figures["written", "in batches, to the task's own line in the end"]["value"] > 1
    assert figures["drain", "2 consumers"]["unit"] == "tasks/s"
    assert not list((tmp_path / "here").iterdir())


def test_what_a_process_was_refused_is_one_sentence_and_its_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On a full disk it was a traceback, and the status that of a dead task."""
    folder = tmp_path / "q"
    folder.mkdir(mode=0o700)
    (folder / "jsonqueue.toml").write_text("disk_reserve_bytes = 1_000_000_000_000_000_000\n")
    publisher = Actor("publisher", folder)
    try:
        publisher.hear()
        with pytest.raises(ActorFailed, match=r"ended before its time, exit status 65") as failed:
            publisher.ask("bulk", tasks=50)
    finally:
        publisher.kill()
    assert failed.value.exit_status == 65
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("50 tasks were rejected, not stored (first: number 1, ")


def test_a_process_whose_benchmark_is_gone_ends_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C in the moment in which one is started: its traceback stood below the prompt."""
    process = start("bench.actors", "publisher", str(tmp_path / "q"), stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stdin, process.stderr as errors:
        assert errors.read() == b""
    process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_terminated_clears_up(number: signal.Signals) -> None:
    """SIGTERM, and a terminal that is closed, unwind as Ctrl-C does: else its publisher went on, and its queue stayed on the disk."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from jsonqueue.cli.bench import report\n"
        "def measure(*_, **__):\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {number})\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        print('cleared', flush=True)\n"
        "report.measure_all = measure\n"
        "from jsonqueue.cli.app import run\n"
        "sys.exit(run(['bench']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "cleared\n", "")
