"""The demo: what its tasks are, what is found in them, what is told of it, and that it plays."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from cli.calls import NOW_MS, call, ended, task
from jsonqueue.cli.console import Console
from jsonqueue.cli.demo import performance, report
from jsonqueue.cli.demo.account import Latency, account_of
from jsonqueue.cli.demo.facts import facts_of, facts_of_file, facts_of_record, facts_of_source
from jsonqueue.cli.demo.performance import ForeignTasks
from jsonqueue.cli.demo.sources import DemoTask, source_of
from jsonqueue.cli.demo.totals import Totals
from jsonqueue.cli.demo.view import Scene, WorkerLine, render
from jsonqueue.client.publisher import Publisher
from jsonqueue.core.state import QueueState
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import ID_PATTERN, Outcome, TaskStatus

SOURCE = b'''"""Doc."""
import os, sys
from a import (b,
               c as d)

class A:
    def one(self):
        def inner(): return [lambda: 0 for _ in ()]
        return inner

    async def two(self):
        if True:
            try: pass
            except OSError:
                import late
            match 1:
                case 1:
                    class B: pass
        return 1
'''


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_facts_of_a_source_file() -> None:
    """Every definition counts wherever it stands; a lambda is none."""
    assert facts_of_source("x.py", SOURCE) == {
        "bytes": len(SOURCE), "lines": 19, "functions": 3, "async_functions": 1, "classes": 2, "imports": 5,
        "longest_function": "A.two", "longest_function_lines": 9,
    }  # fmt: skip


def test_the_walk_over_blocks_misses_no_definition() -> None:
    """It leaves the expressions out; a walk over the whole tree finds the same definitions."""
    for module in (ast, asyncio, re, warnings, shutil, subprocess):
        source = Path(str(module.__file__)).read_bytes()
        found = facts_of_source("x.py", source)
        nodes = [*ast.walk(ast.parse(source))]
        assert found["functions"] == sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
        assert found["classes"] == sum(isinstance(node, ast.ClassDef) for node in nodes)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"def f(:\n", "SyntaxError"),
        (b"x = '\0'", "SyntaxError|ValueError"),
        (b"# coding: nonsense\n", "SyntaxError"),
        (b"\xff\xfe\n", "SyntaxError"),
        (b"(" * 500 + b")" * 500, "SyntaxError|RecursionError|MemoryError"),
    ],
)
def test_a_file_that_is_no_python_has_an_answer_too(source: bytes, error: str) -> None:
    """It is not an attempt that failed: trying again would find the same."""
    facts = facts_of_source("bad.py", source)
    assert re.match(error, facts["error"])
    assert facts["bytes"] == len(source)


@pytest.mark.parametrize(("source", "lines"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\nb", 2), (b"a\nb\n", 2)])
def test_lines_are_counted_as_people_do(source: bytes, lines: int) -> None:
    assert facts_of_source("x.txt", source) == {"bytes": len(source), "lines": lines}


def test_facts_of_a_record() -> None:
    assert facts_of_record({"a": [1, "xyz", {"b": None}]}) == {"values": 6, "keys": 2, "characters": 3, "depth": 4}


def test_the_handler_and_the_direct_pass_find_the_same(tmp_path: Path) -> None:
    """One reads with aiofiles in a coroutine, the other does not; the facts are equal."""
    (tmp_path / "x.py").write_bytes(SOURCE)
    data = {"root": str(tmp_path), "path": "x.py"}
    assert asyncio.run(facts_of(data)) == facts_of_file(str(tmp_path), "x.py") == facts_of_source("x.py", SOURCE)
    assert asyncio.run(facts_of({"record": [1], "line": 3})) == facts_of_record([1])


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_standard_library_is_the_input() -> None:
    """Every source file of it, none of what is installed beside it; ids that read as the files, each one once."""
    source = source_of(None, run="demo-x")
    root = Path(sysconfig.get_path("stdlib")).resolve()
    assert len(source.tasks) > 500
    assert all(re.match(ID_PATTERN, task.id) for task in source.tasks)
    assert len({task.id for task in source.tasks}) == len(source.tasks)
    assert not any("site-packages" in task.data["path"] for task in source.tasks)
    assert DemoTask("demo-x:json:decoder.py", {"root": str(root), "path": "json/decoder.py"}) in source.tasks


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    """Hidden ones, links and caches are left out; names that no id can hold, or that would clash, get a digest."""
    for name in ("a.py", "b/c.txt", "b:c.txt", ".hidden", "__pycache__/x.pyc", "größe.md", "with space", "x" * 120):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("a.py")
    source = source_of(tmp_path, run="demo-x")
    assert {task.data["path"] for task in source.tasks} == {"a.py", "b/c.txt", "b:c.txt", "größe.md", "with space", "x" * 120}
    assert len({task.id for task in source.tasks}) == 6
    assert all(re.match(ID_PATTERN, task.id) for task in source.tasks)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_json_lines_file_is_its_lines(tmp_path: Path, mark: str) -> None:
    """Whether or not an editor put a byte order mark before it."""
    (tmp_path / "x.jsonl").write_text(mark + '{"a":1}\n\n2\n', encoding="utf-8")
    source = source_of(tmp_path / "x.jsonl", run="demo-x")
    told = [(task.id, task.data["record"], task.where) for task in source.tasks]
    assert told == [("demo-x:1", {"a": 1}, "line 1"), ("demo-x:3", 2, "line 3")]


def test_input_that_is_none_is_told(tmp_path: Path) -> None:
    """Nothing is started for it."""
    (tmp_path / "bad.jsonl").write_text("1\noops\n")
    assert "line 2: not JSON" in call("demo", "--input", str(tmp_path / "bad.jsonl")).err
    (tmp_path / "empty").mkdir()
    assert "found no files" in call("demo", "--input", str(tmp_path / "empty")).err
    (tmp_path / "empty.jsonl").touch()
    assert "found no lines in" in call("demo", "--input", str(tmp_path / "empty.jsonl")).err
    assert call("demo", "--input", str(tmp_path / "nowhere")).status == 2


# ── totals, account, report ──────────────────────────────────────────────────────────────────────────────────────────


def totals(*facts: dict[str, object]) -> Totals:
    """The sum of these, in this order."""
    sum_of = Totals()
    for number, each in enumerate(facts):
        sum_of.add(f"file-{number}", each)
    return sum_of


LONG = {"bytes": 10, "lines": 2, "functions": 1, "longest_function": "f", "longest_function_lines": 2}
SHORT = {"bytes": 5, "lines": 1, "functions": 0, "error": "SyntaxError: x", "longest_function": "", "longest_function_lines": 0}


def test_totals_do_not_depend_on_the_order_or_the_division() -> None:
    """Two processes that each did half have the sum of one that did all; told as JSON and read back, too."""
    whole, left, right = Totals(), Totals(), Totals()
    for where, facts in (("a", LONG), ("b", SHORT), ("c", LONG)):
        whole.add(where, facts)
    right.add("c", LONG)
    right.add("b", SHORT)
    left.add("a", LONG)
    left.merge(Totals.told(json.loads(json.dumps(right.__dict__))))
    assert left == whole
    assert all(figure.equal for figure in left.compare(whole, things="files"))
    assert whole.longest == (2, "f", "c")


def test_each_figure_that_differs_shows() -> None:
    """A comparison that could not fail would be none."""
    right = totals(LONG, SHORT)
    for wrong in (
        totals(LONG),
        totals({**LONG, "bytes": 11}, SHORT),
        totals({**LONG, "longest_function": "g"}, SHORT),
        totals(LONG, {**SHORT, "depth": 3}),
        totals(LONG, {name: value for name, value in SHORT.items() if name != "error"}),
    ):
        assert not all(figure.equal for figure in wrong.compare(right, things="files"))


def test_percentiles_are_of_the_waits_themselves() -> None:
    assert Latency.of([]) == Latency(0, 0)
    assert Latency.of([7]) == Latency(7, 7)
    assert Latency.of([*range(1, 101)]) == Latency(50, 99)


def test_the_account_tells_what_went_wrong() -> None:
    """Lost, retried, completed twice: each is seen in the tasks as they are stored."""
    given = [DemoTask(name, {"path": name}) for name in ("good", "again", "twice", "dead", "gone")]
    fine = {"finished_ms": NOW_MS, "published_ms": NOW_MS - 1_000, "result": LONG}
    once = ended(Outcome.COMPLETED, started_ms=NOW_MS - 400)
    state = QueueState([
        task("good", TaskStatus.COMPLETED, history=(once,), **fine),
        task("again", TaskStatus.COMPLETED, history=(ended(Outcome.LOST), once), **fine),
        task("twice", TaskStatus.COMPLETED, history=(once, once), **fine),
        task("dead", TaskStatus.DEAD),
        task("stranger", TaskStatus.COMPLETED, history=(once,), **fine),
    ])  # fmt: skip
    account = account_of(given, state.tasks)
    assert (account.published, account.completed, account.retried, account.lost, account.completed_twice) == (4, 3, 2, 2, 1)
    assert (account.to_start, account.to_done) == (Latency(600, 600), Latency(1_000, 1_000))
    assert account.totals.sums["bytes"] == 30


def outcome() -> report.Outcome:
    """What a good run has to tell."""
    sum_of = totals(LONG, SHORT)
    account = replace(account_of([], {}), published=1_790, completed=1_790, to_start=Latency(2_300, 4_600), working_s=4.7, totals=sum_of)
    return report.Outcome(
        title="the standard library", things="Python files", figures=sum_of.compare(sum_of, things="Python files"), account=account,
        duplicates=0, publishers=2, workers=2, publish_s=0.04, queue_s=4.9, direct_s=4.1, queue_file=Path("queue_data/demo/queue.json"),
        queue_bytes=1_200_000, longest="f in \x1b[31mx.py, 2 lines", example="demo-x:x.py",
    )  # fmt: skip


def test_the_report_fits_a_terminal_and_is_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """80 columns, but for commands, which are for copying and stay whole."""
    report.print_outcome(Console(), outcome())
    printed = capsys.readouterr().out
    told, _, commands = printed.partition("Try:")
    assert max(map(len, told.splitlines())) <= 80
    assert printed.replace("\n", "").isprintable()
    assert "✓ 1,790 Python files" in told
    assert commands.count("demo-x:x.py") == 2


def test_the_report_says_when_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """One figure, one lost task or one that completed twice is enough."""
    good = outcome()
    assert good.good
    wrong = [
        replace(good, figures=[replace(good.figures[0], equal=False), *good.figures[1:]]),
        replace(good, account=replace(good.account, lost=1)),
        replace(good, account=replace(good.account, completed_twice=1)),
    ]
    for each in wrong:
        assert not each.good
        report.print_outcome(Console(), each)
        assert "Not all is as it should be" in capsys.readouterr().out
        report.print_outcome(Console(as_json=True), each)
        assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("workers", [1, 2, 40])
def test_the_view_fits_its_width(width: int, workers: int) -> None:
    """Whatever is told by the workers, and in no colour either."""
    lines = [WorkerLine(f"worker-{number}", number * 100, "a/" * 60 + "\x1b[2Jevil.py") for number in range(workers)]
    scene = Scene(
        "x" * 200, total=1790, published=1790, in_progress=1, completed=1789, publish_rate=45_113, complete_rate=0.5, checked=3,
        workers=lines,
    )  # fmt: skip
    console = RichConsole(width=width, no_color=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed below
    with console.file:
        console.print(render(scene, width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    drawn = [line for line in text.splitlines() if "━" in line or "╸" in line]
    bars = {line.split()[0]: (line.count("━"), line.count("╸"), line.count("─")) for line in drawn}
    assert bars["published"][2] == 0
    assert bars["in"][:2] == (0, 1)  # one of many still shows
    assert bars["completed"][1:] == (1, 0)  # all but one is not all


@pytest.mark.parametrize("width", [26, 40, 46, 47])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int) -> None:
    """What was left of 45,113 a second was 4, and of 1,790 tasks 1."""
    scene = Scene("x", total=1790, published=1790, completed=1788, publish_rate=45_113, complete_rate=12_345, checked=3, elapsed_s=12.0)
    console = RichConsole(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed below
    with console.file:
        console.print(render(scene, width))
    ends = {line.split()[0]: line.split()[-1] for line in console.export_text().splitlines() if {*"━╸─"} & {*line}}
    rated = width >= 47
    assert ends == {
        "published": "45,113/s" if rated else "1,790",
        "in": "0",
        "completed": "12,345/s" if rated else "1,788",
        "direct": "compare" if rated else "3",
    }


def test_rates_are_those_of_the_last_moments() -> None:
    """A number that rests keeps the rate it came with, instead of fading to nothing on the screen."""
    rate = performance.Rate()
    assert rate.of(0, 0.0) == 0
    assert rate.of(100, 1.0) == 100
    assert rate.of(300, 2.0) == 150
    assert rate.of(300, 9.0) == 150
    for second in range(3, 9):
        last = rate.of(300 + 10 * second, float(second))
    assert last == pytest.approx(10, abs=2)


def test_a_demo_that_is_kept_serves_also_if_nobody_reads_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo --keep | head` ended its brokers with the report, though they were to serve until Ctrl-C, as `serve | head` does."""
    done: list[str] = []

    def unread(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(performance, "print_outcome", unread)
    monkeypatch.setattr(performance, "to_nowhere", lambda stream: done.append("to nowhere"))
    manager: Any = SimpleNamespace(serve_forever=lambda: done.append("served"))
    outcome: Any = None
    performance.Performance(Console(), tmp_path, workers=1, publishers=1)._serve_on(manager, outcome)
    assert done == ["to nowhere", "served"]


# ── the whole of it ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a little work."""
    (tmp_path / "code" / "sub").mkdir(parents=True)
    for number in range(30):
        (tmp_path / "code" / "sub" / f"m{number}.py").write_bytes(SOURCE * (number + 1))
    (tmp_path / "code" / "bad.py").write_text("def f(:\n")
    (tmp_path / "code" / "data.bin").write_bytes(bytes(range(256)))
    return tmp_path / "code"


def play(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The demo, as a person calls it."""
    line = [sys.executable, "-m", "jsonqueue.main", *arguments]
    return subprocess.run(line, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=50, check=False)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.processes
def test_the_demo_plays_and_its_commands_work_as_typed(tmp_path: Path, files: Path) -> None:
    """Without a command; the queue is a folder of its own, closed at the end, and what is proposed to be tried works."""
    done = play("--input", str(files), "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "✓ 32 files went through the queue" in done.stdout
    assert "DIFFERS" not in done.stdout
    queue = tmp_path / "queue_data" / "demo"
    assert not [*queue.glob("*.jsonl")]
    assert {task.status for task in inspect(queue).state.tasks.values()} == {TaskStatus.COMPLETED}
    proposed = [line.strip() for line in done.stdout.partition("Try:")[2].splitlines() if line.strip()]
    one, life, several = (
        subprocess.run(shlex.split(line), cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True).stdout
        for line in proposed
    )
    assert "A.two" in one
    assert "completed after" in life
    assert len(several.splitlines()) == 6


@pytest.mark.processes
def test_the_demo_runs_again_and_clears_up_after_one_that_was_interrupted(tmp_path: Path, files: Path) -> None:
    """Fresh ids each time; what an interrupted run left waiting is cancelled, and told. As JSON for a program."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish({"root": str(files), "path": "bad.py"}, id="demo-old:bad.py")
    for cleared in (True, False):
        done = play("demo", "--input", str(files), "--workers", "2", "--queue", "q", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["ok"], told["queue"]["completed"], told["queue"]["lost"], told["cleared"]) == (True, 32, 0, int(cleared))
        assert done.stderr == ""
    assert inspect(tmp_path / "q").state.tasks["demo-old:bad.py"].status is TaskStatus.CANCELLED


@pytest.mark.processes
def test_the_demo_takes_json_lines(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'{{"n": {number}, "t": "abc"}}\n' for number in range(50)))
    done = play("--input", "x.jsonl", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert {figure["name"]: figure["queue"] for figure in told["figures"]} == {
        "records": 50, "values": 150, "keys": 100, "characters of text": 150, "deepest nesting": 2,
    }  # fmt: skip


@pytest.mark.processes
def test_a_record_that_the_queue_refuses_is_no_bug(tmp_path: Path) -> None:
    """The status was 70, and an exception's module and class stood before what it said. 65 is that of `publish` for the same line."""
    (tmp_path / "deep.jsonl").write_text("[" * 70 + "]" * 70 + "\n")
    done = play("--input", "deep.jsonl", cwd=tmp_path)
    assert done.returncode == 65
    said = "ended with status 65: 1 task was rejected, not stored (number 1, demo-"
    assert said in done.stderr.splitlines()[-1]
    assert "nested more than 64 deep" in done.stderr.splitlines()[-1]


def test_the_demo_leaves_other_peoples_tasks_alone(tmp_path: Path, files: Path) -> None:
    """Its workers would take them; so it does not start."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="mine")
    called = call("demo", "--input", str(files), "--queue", str(tmp_path / "q"))
    assert called.status == ForeignTasks.exit_status
    assert "holds 1 unfinished task of somebody else's" in called.err


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C at any moment: quiet, its status the shell's, its children gone, its queue whole."""
    source = tmp_path / "code"
    source.mkdir()
    (source / "m.py").write_bytes(SOURCE * 300)
    for name in range(4_000):  # far more than an idle machine does between two lines of progress
        (source / f"m{name}.py").hardlink_to(source / "m.py")
    # Tests that run in the background of a shell inherit an ignored SIGINT, which would be left so; a terminal's child has it.
    heeds = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from jsonqueue.main import main; raise SystemExit(main())"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", heeds, "--input", str(source)], cwd=tmp_path, env=_environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert demo.stderr is not None
    with demo.stderr:
        while "completed 0 " in (line := demo.stderr.readline()):
            assert line
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)  # as a terminal does: the brokers hear it as well
        else:
            demo.send_signal(number)
        rest = demo.stderr.read()  # ends when the last process that holds it has ended
    assert demo.wait(20) == 128 + number
    assert "Traceback" not in rest
    assert not [line for line in _processes() if str(tmp_path) in line]
    assert inspect(tmp_path / "queue_data" / "demo").state.tasks


def _processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
