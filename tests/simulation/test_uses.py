"""What users do with the simulator: probes, their own handlers, their own workloads, their own logs; shrinking, and the report."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from socket import socketpair
from threading import Thread
from typing import Any

import pytest

from jsonqueue import Retry, current
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import InvalidConfig, InvalidTask
from jsonqueue.retry import Never
from jsonqueue.simulation import Habits, Scenario, assert_always, assert_eventually, reproduce, run_seed, shrink, simulate
from jsonqueue.simulation import replay as replaying
from jsonqueue.simulation.history import Operation, explained
from jsonqueue.simulation.replay import replay, what_if
from jsonqueue.simulation.report import page
from jsonqueue.simulation.running import scenario_of
from jsonqueue.simulation.sleeping import Loop
from jsonqueue.simulation.workload import answer, parse_workload, without_retries
from jsonqueue.simulation.world import World
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.recovery import load_state
from simulation.planted import BUGS

pytest_plugins = ["pytester"]


def test_a_probe_that_holds_and_one_that_does_not() -> None:
    """What a user claims is checked at every turn."""
    fine = [
        assert_always("bounded", lambda view: view.depth <= 60),
        assert_eventually("ends", lambda view: view.status("t1") == "completed"),
    ]
    assert simulate(60, seed=2, probes=fine).ok
    wrong = simulate(60, seed=2, probes=[assert_always("never more than 3 wait", lambda view: view.depth <= 3)])
    assert (wrong.kind, "never more than 3 wait" in wrong.violation) == ("probe", True)
    never = simulate(10, seed=2, probes=[assert_eventually("a thousand runs", lambda view: view.runs > 1_000)])
    assert never.kind == "probe"


def test_a_handler_that_is_not_idempotent_is_found() -> None:
    """Crashes make a handler run twice for one task; some seed shows it."""

    def effects(seed: int) -> list[int]:
        seen: list[int] = []
        verdict = simulate([{"n": n} for n in range(30)], seed=seed, workers=3, crashes=6, handler=lambda task: seen.append(task.data["n"]))
        assert verdict.ok, verdict.violation
        assert set(seen) == set(range(30))
        return seen

    assert any(len(effects(seed)) > 30 for seed in range(20))


def test_the_plugin_runs_a_test_for_each_seed(pytester: pytest.Pytester) -> None:
    """`--jsonqueue-seeds=3` makes three tests of one."""
    pytester.makepyfile(
        """
        from jsonqueue.simulation import simulate
        def test_it(jsonqueue_seed):
            assert simulate(5, seed=jsonqueue_seed, crashes=1, handler=lambda task: None).ok
        """
    )
    pytester.runpytest("-p", "jsonqueue.simulation.pytest_plugin", "--jsonqueue-seeds=3", "-p", "no:cacheprovider").assert_outcomes(
        passed=3
    )


def test_the_plugin_names_the_line_that_runs_a_failure_again(pytester: pytest.Pytester) -> None:
    """A handler that is not idempotent is found, and the seed that found it finds it alone."""
    pytester.makepyfile(
        test_shop="""
        from jsonqueue.simulation import simulate
        def test_mail(jsonqueue_seed):
            sent = []
            mail = lambda task: sent.append(task.id)
            verdict = simulate([{"n": n} for n in range(20)], seed=jsonqueue_seed, workers=3, crashes=4, handler=mail)
            assert verdict.ok, verdict.violation
            assert len(sent) == len(set(sent))
        """
    )
    plugin = ("-p", "jsonqueue.simulation.pytest_plugin", "-p", "no:cacheprovider")
    found = pytester.runpytest(*plugin, "--jsonqueue-seeds=20")
    line = next(line for line in found.outlines if "'test_shop.py::test_mail' --jsonqueue-seed=" in line)
    _, *words = shlex.split(line, comments=True)
    pytester.runpytest(*words, "-p", "no:cacheprovider").assert_outcomes(failed=1)


def test_a_handler_is_called_as_a_consumer_would() -> None:
    """A coroutine runs to its end, in a run that it can ask after."""

    async def handler(task: Any) -> int:
        assert current().task is task
        seen.append(task.data)
        return 1

    seen: list[int] = []
    verdict = simulate([1, 2, 3], handler=handler)
    assert verdict.ok, verdict.violation
    assert (sorted(seen), verdict.totals.completed) == ([1, 2, 3], 3)


def test_an_interrupt_ends_the_run() -> None:
    """Ctrl-C comes wherever the program is, and mostly it is in the handler; it is no failed attempt."""

    def handler(task: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(1, handler=handler)


def test_a_coroutine_that_sleeps_for_days_holds_nobody_up() -> None:
    """Nothing happens meanwhile that would have to be waited for; its own clock says that the time has passed."""

    async def handler(task: Any) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        await asyncio.sleep(3 * 86_400)
        slept.append(clock() - began)

    slept: list[float] = []
    verdict = simulate(3, handler=handler)
    assert verdict.ok, verdict.violation
    assert verdict.totals.completed == len(slept) == 3
    assert min(slept) >= 3 * 86_400


def test_what_a_coroutine_has_threads_for_takes_its_time() -> None:
    """A timeout of its own leaves them as much as it says, however they were started."""

    async def handler(task: Any) -> None:
        loop = asyncio.get_running_loop()
        if task.data:
            done = loop.run_in_executor(pool, sum, range(2_000_000))
        else:
            done = loop.create_future()
            Thread(target=lambda: loop.call_soon_threadsafe(done.set_result, sum(range(2_000_000)))).start()
        assert await asyncio.wait_for(done, 3_600) == 1_999_999_000_000

    with ThreadPoolExecutor(1) as pool:
        pool.submit(sum, ()).result()  # its thread is there before the handler is
        verdict = simulate([True, False], handler=handler)
    assert verdict.ok, verdict.violation
    assert verdict.totals.completed == 2


def test_a_coroutine_with_a_connection_sleeps_in_real_time() -> None:
    """Somebody may write to it at any moment."""
    loop, (ours, theirs) = Loop(), socketpair()
    with closing(loop), ours, theirs:
        loop.add_reader(ours, print)
        loop.run_until_complete(asyncio.sleep(0.001))
        assert loop.skipped_s == 0
        loop.remove_reader(ours)
        loop.run_until_complete(asyncio.sleep(3_600))
        assert loop.skipped_s > 3_599


def test_a_handler_that_asks_for_a_long_wait_is_no_deadlock() -> None:
    """The wait is the simulated one, and it is waited for, whenever the handler asked for it."""

    def handler(task: Any) -> None:
        if task.attempt < 3:
            raise Retry(after=timedelta(hours=3))

    config = Config(lease_ms=60_000, flush_interval_ms=60_000, disk_reserve_bytes=0)
    verdict = simulate(3, handler=handler, config=config, crashes=1)
    assert verdict.ok, verdict.violation
    assert (verdict.totals.completed, verdict.totals.runs >= 9) == (3, True)


def test_a_coroutine_within_another_is_refused() -> None:
    """It could not be awaited: all its tasks were dead in the end, and it never ran."""

    async def handler(task: Any) -> None: ...

    async def a_test() -> None:
        simulate(1, handler=handler)

    with pytest.raises(TypeError, match="from plain code"):
        asyncio.run(a_test())


def test_a_handler_that_always_fails_is_no_deadlock() -> None:
    """Its tasks are dead in the end, as they would be."""

    def broken(task: Any) -> None:
        raise ValueError("never")

    verdict = simulate(3, handler=broken, crashes=1)
    assert verdict.ok, verdict.violation
    assert (verdict.totals.dead, verdict.totals.completed) == (3, 0)


@pytest.mark.parametrize("payload", [float("nan"), 2**64, {1: 2}, "x" * 1_100_000])
def test_a_payload_that_no_queue_takes_is_refused(payload: Any) -> None:
    """As publish refuses it, and not as a world that comes to no end."""
    with pytest.raises(InvalidTask, match="payload"):
        simulate([payload])


def test_nobody_works_is_no_world() -> None:
    """Refused by name."""
    with pytest.raises(ValueError, match="workers is 0"):
        simulate(1, workers=0)


SPEC = """
tasks = 600
consumers = 4
failure_rate = 0.2
[arrival]
pattern = "even"
per_second = 300.0
[duration]
kind = "exponential"
ms = 15.0
"""


def test_a_workload_is_answered() -> None:
    """300 tasks a second of 15 ms each are 4.5 consumers' work: 4 fall behind, 5 more do not; retries cost what they cost."""
    workload = parse_workload(SPEC)
    now, more, calm = answer(workload), answer(workload, more_consumers=5), answer(without_retries(workload))
    assert now.verdict.ok, now.verdict.violation
    assert now.utilisation > 0.9
    assert more.wait_ms["p99"] < now.wait_ms["p99"] / 4
    assert more.deepest < now.deepest
    assert now.retried > 60 > calm.retried == 0


def test_an_outage_comes_back_as_a_storm() -> None:
    """What failed meanwhile is tried again beside what comes anyway: more waits, longer, and some have no attempts left."""
    workload = parse_workload(SPEC.replace("failure_rate = 0.2", "consumers = 6").replace("consumers = 4\n", ""))
    calm, storm = answer(workload), answer(workload, outage=0.3)
    assert storm.verdict.ok, storm.verdict.violation
    assert (calm.retried, calm.dead) == (0, 0)
    assert storm.retried > 100
    assert storm.dead > 0
    assert storm.deepest > calm.deepest


def test_a_workload_that_is_wrong_is_named() -> None:
    """The setting at fault is in the message."""
    with pytest.raises(InvalidConfig, match="per_second"):
        parse_workload("[arrival]\nper_second = -1.0\n")
    for table, name, value in (("arrival", "per_second", "1e-300"), ("duration", "ms", "inf"), ("duration", "spread", "1e9")):
        with pytest.raises(InvalidConfig, match=name):
            parse_workload(f"[{table}]\n{name} = {value}\n")
    for shares in ("[]", "[0.0, 0.0]"):
        with pytest.raises(InvalidConfig, match="priorities"):
            parse_workload(f"priorities = {shares}")


def test_tasks_that_fail_a_hundred_times_are_no_deadlock() -> None:
    """However many attempts a workload allows, and however long they wait in between."""
    workload = parse_workload("tasks = 10\nfailure_rate = 0.97\nattempts_max = 100\n")
    done = answer(workload)
    assert done.verdict.ok, done.verdict.violation
    assert done.retried > 100


def test_a_workload_of_months_takes_no_longer_than_its_tasks() -> None:
    """Nobody asks what the heartbeats and checkpoints of a quarter of a year come to."""
    done = answer(parse_workload('tasks = 4\n[arrival]\npattern = "even"\nper_second = 1e-6\n'))
    assert done.verdict.ok, done.verdict.violation
    assert done.drained_s > 30 * 86_400
    assert done.verdict.events < 100_000


def test_a_workload_that_waits_for_days_before_it_tries_again_takes_no_longer_than_its_tasks() -> None:
    """All that time its consumers were simulated with a heartbeat every ten seconds."""
    text = 'tasks = 10\nconsumers = 2\nfailure_rate = 0.9\nattempts_max = 2\nretry = {kind="linear", step_ms=%d, cap_ms=%d}\n'
    day_ms = 86_400_000
    minutes, days = (answer(parse_workload(text % (step_ms, step_ms))) for step_ms in (60_000, 3 * day_ms))
    assert days.drained_s > 3 * 86_400
    assert (days.attempts, days.dead) == (minutes.attempts, minutes.dead)
    assert days.verdict.ok
    assert days.verdict.events < 50_000


def test_a_failure_shrinks_to_the_faults_that_matter() -> None:
    """Of all that a seed draws, what is needed to fail is left, and one line repeats it."""
    bug = BUGS["numbers kept after a failed batch"]
    assert bug.scenario is None
    with bug.plant() as cast:
        found = run_seed(bug.seed, cast=cast)
        assert not found.ok
        smaller = shrink(found, cast=cast)
        assert smaller.kind == found.kind
        assert len(smaller.scenario.faults) <= len(found.scenario.faults)
        assert smaller.scenario.tasks <= found.scenario.tasks
        assert run_seed(bug.seed, smaller.scenario, cast=cast).same(smaller)
    assert reproduce(found) == f"jsonqueue simulate --swarm 1 --seed {bug.seed}"


def test_the_report_is_one_page_without_a_network() -> None:
    """It holds the trace, and asks for nothing from outside."""
    world = World(3, run_seed(3).scenario, keep=True)
    text = page(world.run(), list(world.trace.entries))
    assert '"names":["manager.1"' in text
    assert "://" not in text
    assert "default-src 'none'" in text


NASTY = "</script><script>document.title=1</script><!--<img src=x onerror=alert(1)>"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_draws_the_report(tmp_path: Path) -> None:
    """The first error, what led to it, and the life of a task are on the page; what a claim is called stays text."""
    world = World(2, scenario_of(2, workers=3, tasks=30), keep=True, probes=[assert_always(NASTY, lambda view: view.runs < 9)])
    verdict = world.run()
    report = tmp_path / "report.html"
    report.write_text(page(verdict, list(world.trace.entries)), encoding="utf-8")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    )
    command = [
        "chromium",
        *options.split(),
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"{report.as_uri()}#task=t1",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stdout
    assert "<title>jsonqueue simulate · seed 2</title>" in shown
    assert "✗ probe: '&lt;/script&gt;" in shown
    assert shown.count("VIOLATION</td>") >= 2, "in the panel of the first error, and in the list"
    life = shown[shown.index('id="life"') : shown.index('id="log"')]
    assert ">acknowledged</td>" in life
    assert "img src=x" not in shown.replace("&lt;img src=x", "").replace("\\u003cimg src=x", "")


def test_the_log_of_a_real_queue_replays(tmp_path: Path) -> None:
    """The same transitions, record by record; then the same work under other circumstances."""
    queue = tmp_path / "q"
    with Publisher(queue) as publisher:
        publisher.publish_many([{"n": n} for n in range(40)])
    replayed = replay(queue)
    assert (replayed.tasks, replayed.same) == (40, True)
    assert replayed.batches >= 1
    other = what_if(queue, consumers=2, retry=Never())
    assert other.verdict.ok, other.verdict.violation
    assert other.verdict.totals.completed == 40


def test_a_queue_in_use_is_replayed_as_it_was_at_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published, and folded, while it is read makes it no other queue."""
    queue = tmp_path / "q"

    def and_then(act: Callable[[], object]) -> None:
        todo = [act]

        def load(files: Any) -> Any:
            loaded = load_state(files)
            while todo:
                todo.pop()()
            return loaded

        monkeypatch.setattr(replaying, "load_state", load)

    with Publisher(queue) as publisher:
        publisher.publish_many(range(10))
        and_then(lambda: publisher.publish(10))
        assert replay(queue).same
        and_then(lambda: _fold(queue))
        assert replay(queue).same


def _fold(queue: Path) -> None:
    files = open_folder(queue, create=False)
    final_checkpoint(files, config=Config(), at_ms=0)
    files.shut()


@pytest.mark.parametrize(
    ("operations", "fits"),
    [
        ([("publish", 1, 2, "stored"), ("look", 3, 4, "live"), ("cancel", 5, 6, "cancelled"), ("look", 7, 8, "cancelled")], True),
        ([("publish", 1, 2, "stored"), ("look", 3, 4, "absent")], False),
        ([("publish", 1, 4, "stored"), ("look", 2, 3, "absent")], True),
        ([("publish", 1, 2, "stored"), ("cancel", 3, 4, "cancelled"), ("complete", 5, 6, "done")], False),
        ([("publish", 1, 2, "stored"), ("cancel", 3, 6, "already over"), ("complete", 4, 5, "done")], True),
        ([("publish", 1, 2, "stored"), ("complete", 3, 4, "done"), ("complete", 5, 6, "done")], False),
    ],
)
def test_histories_are_judged(operations: list[Any], fits: bool) -> None:
    """An order is found where there is one, and none where there is none."""
    history = [Operation(what, "t1", invoked, returned, outcome) for what, invoked, returned, outcome in operations]
    assert explained(history) is fits


def test_no_task_is_passed_to_and_fro() -> None:
    """A consumer whose threads are busy with runs that were cancelled is not sent what it can only give back."""
    habits = Habits(work_us=(600_000_000, 3_600_000_000), cancelled=0.5, asked_us=7_200_000_000)
    config = Config(lease_ms=600_000, flush_interval_ms=600_000, disk_reserve_bytes=0)
    verdict = run_seed(3, Scenario(tasks=60, consumers=2, concurrency=2, spread_us=36_000_000_000, habits=habits, config=config))
    assert verdict.ok, verdict.violation
    assert verdict.counts["revoke"] >= 3
    assert verdict.counts["leases"] <= verdict.totals.runs + verdict.counts["revoke"]
