"""``jsonqueue simulate``."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jsonqueue.cli.app import command
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.options import Figure, Output, typed, written
from jsonqueue.cli.reading import require_queue
from jsonqueue.cli.text import count, duration, plural, printable

if TYPE_CHECKING:
    from jsonqueue.simulation import Scenario, Verdict
    from jsonqueue.simulation.trace import Entry
    from jsonqueue.simulation.workload import Answers

__all__ = ["simulate"]


@command("simulate", of_queue=False, short_help="Run the real brokers on a simulated machine where things go wrong.")
@click.option("--workers", type=click.IntRange(1, 1_000), default=10, show_default=True, help="Consumers.")
@click.option("--tasks", type=click.IntRange(1, 1_000_000), default=1_000, show_default=True, help="Tasks to publish.")
@click.option("--drop", type=Figure(0, 0.5), default=0.0, show_default=True, help="Share of the frames that the Pipes lose.")
@click.option("--crashes", type=click.IntRange(0, 1_000), default=0, show_default=True, help="Processes, or the whole machine, that die.")
@click.option("--seed", type=int, default=1, show_default=True, help="Everything else is drawn from it; the same seed is the same run.")
@click.option("--swarm", type=click.IntRange(1), metavar="N", help="Instead: N worlds, each with size and faults drawn from its own seed.")
@click.option("--scenario", "given", metavar="JSON", help="Instead: exactly this, as a failure printed it.")
@click.option(
    "--workload", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="TOML", help="Instead: a workload of your own."
)
@click.option(
    "--replay",
    "recorded",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Instead: fold the logs of a real queue with every check on, then run its work again with --workers.",
)
@click.option("--shrink", is_flag=True, help="Reduce a failure to the fewest faults that still fail.")
@click.option("--log", is_flag=True, help="Print the full trace: two runs of a seed print the same.")
@click.option("--html", type=Output(), metavar="FILE", help="Write a report to be opened in a browser.")
def simulate(
    settings: Settings,
    workers: int,
    tasks: int,
    drop: float,
    crashes: int,
    seed: int,
    swarm: int | None,
    given: str | None,
    workload: Path | None,
    recorded: Path | None,
    shrink: bool,
    log: bool,
    html: Path | None,
) -> int:
    """Run the real brokers, storage and consumers on a simulated clock, wire and disk, and judge them.

    Lost, duplicated, out of order, deadlocked, or nothing of the kind: the verdict comes in seconds, hours of virtual time included. The
    same seed gives the same run, to the byte, on any machine; a failure prints the line that repeats it. docs/simulation.md tells what is
    simulated and what is judged.

    Exit status 1 if a promise was broken.
    """
    from jsonqueue.simulation import draw
    from jsonqueue.simulation.running import scenario_of

    console = settings.console
    _refuse_what_would_not_count(settings)
    if workload is not None:
        return _workload(console, workload, seed)
    if recorded is not None:
        return _replay(console, recorded, workers, seed)
    if swarm and not (swarm == 1 and (log or html)):
        return _swarm(console, range(seed, seed + swarm), shrink=shrink)
    if given is not None:
        scenario = _given(given)
    else:
        scenario = draw(seed) if swarm else scenario_of(seed, workers=workers, tasks=tasks, drop=drop, crashes=crashes)
    return _one(console, seed, scenario, shrink=shrink, log=log, html=html)


_BESIDE = {
    "workload": {"seed"},
    "recorded": {"seed", "workers"},
    "given": {"seed", "shrink", "log", "html"},
    "swarm": {"seed", "shrink", "log", "html"},
}
"""What says which worlds to run → which other options count then."""
_OPTIONS = {*_BESIDE, "workers", "tasks", "drop", "crashes", "seed", "shrink", "log", "html"}


def _refuse_what_would_not_count(settings: Settings) -> None:
    if settings.queue_given:
        raise click.UsageError("--queue does not go with simulate, whose queues are made up: --replay takes the logs of a real one")
    given = {name: written for name, written in typed().items() if name in _OPTIONS}
    for kind in sorted(_BESIDE.keys() & given.keys()):
        for name in sorted(given.keys() - _BESIDE[kind] - {kind}):
            raise click.UsageError(f"{given[name]} does not go with {given[kind]}")
    if click.get_current_context().params["swarm"] not in {None, 1} and (beside := {"log", "html"} & given.keys()):
        raise click.UsageError(f"{given[min(beside)]} shows one world: give its seed, and --swarm 1")


def _given(text: str) -> Scenario:
    import msgspec

    from jsonqueue.simulation import Scenario
    from jsonqueue.simulation.scenario import FAULTS

    try:
        scenario = msgspec.json.decode(text, type=Scenario)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise click.BadParameter(f"no scenario: {printable(str(error))}{_what_there_is(str(error))}", param_hint="--scenario") from None
    if unknown := {fault.kind for fault in scenario.faults} - FAULTS.keys():
        there_are = ", ".join(FAULTS)
        raise click.BadParameter(f"no scenario: there is no fault {min(unknown)!r}, but there are {there_are}", param_hint="--scenario")
    return scenario


def _what_there_is(error: str) -> str:
    """Where it names a field that is none: those that are."""
    from jsonqueue.config import Config
    from jsonqueue.simulation import Scenario
    from jsonqueue.simulation.scenario import Fault, Habits
    from jsonqueue.simulation.wire import Weather

    if "unknown field" not in error:
        return ""
    place = re.search(r" - at `\$\.([\w.]+)(\[\d+\])?`$", error)  # of a field of the scenario itself it says none
    part = {"weather": Weather, "habits": Habits, "faults": Fault, "config": Config}.get(place[1]) if place else Scenario
    return f"; there are {', '.join(part.__struct_fields__)}" if part else ""


def _workload(console: Console, path: Path, seed: int) -> int:
    """What a workload does to the queue: as it is, with 5 more workers, were no attempt to fail, and with an outage in the middle."""
    from jsonqueue.errors import InvalidConfig
    from jsonqueue.simulation.workload import answer, parse_workload, without_retries

    try:
        workload = parse_workload(path.read_text(encoding="utf-8"), source=str(path))
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{path} is not UTF-8: {error}") from None
    runs = {"as it is": answer(workload, seed=seed), "5 more workers": answer(workload, seed=seed, more_consumers=5)}
    if workload.failure_rate:
        runs["no failures"] = answer(without_retries(workload), seed=seed)
    runs["an outage for a tenth of it"] = answer(workload, seed=seed, outage=0.1)
    return _told(console, runs)


def _replay(console: Console, queue_dir: Path, workers: int, seed: int) -> int:
    """The log of a real queue: whether it keeps every promise, and what other workers or no retries would have made of its work."""
    from jsonqueue.retry import Never
    from jsonqueue.simulation.replay import replay, what_if
    from jsonqueue.simulation.verdict import Violation

    require_queue(queue_dir, option="--replay")  # of a folder without one it is not said that every check holds
    try:
        replayed = replay(queue_dir)
    except Violation as error:
        if console.as_json:
            console.json({"what": "the logs", "violation": str(error)})
        else:
            console.line(f"✗ {printable(str(error))}")
        return 1
    if console.as_json:
        console.json({"what": "the logs", "tasks": replayed.tasks, "batches": replayed.batches, "same": replayed.same})
    else:
        same = "in the state that a start would find" if replayed.same else "in ANOTHER state than a start would find"
        folded = f"{plural(replayed.tasks, 'task')}, {plural(replayed.batches, 'batch', 'batches')} of the logs"
        console.line(f"{folded}: every check holds, {same}")
        console.line()
    if not replayed.tasks:
        return 0 if replayed.same else 1
    runs = {
        plural(workers, "worker"): what_if(queue_dir, consumers=workers, seed=seed),
        "5 more workers": what_if(queue_dir, consumers=workers + 5, seed=seed),
        "no retries": what_if(queue_dir, consumers=workers, retry=Never(), seed=seed),
    }
    return max(_told(console, runs), 0 if replayed.same else 1)


def _told(console: Console, runs: dict[str, Answers]) -> int:
    import msgspec

    if console.as_json:
        for name, run in runs.items():
            console.json({"what": name} | {key: value for key, value in msgspec.to_builtins(run).items() if key != "verdict"})
    else:
        headings = ("what", "workers", "wait p50", "p90", "p99", "most", "busy", "deepest", "drained", "retries", "dead")
        console.table(headings, [_answers(name, run) for name, run in runs.items()], right=range(1, len(headings)))
    broken = [run.verdict for run in runs.values() if not run.verdict.ok]
    for verdict in broken:
        _show(console, verdict, logged=False, again=False)  # the work is not in the scenario: what was typed is what repeats it
    return 1 if broken else 0


def _answers(name: str, run: Answers) -> list[str]:
    waits = [duration(run.wait_ms[share]) for share in ("p50", "p90", "p99", "most")]
    return [
        name, count(run.consumers), *waits,
        f"{run.utilisation:.0%}", count(run.deepest), duration(run.drained_s * 1000), count(run.retried), count(run.dead),
    ]  # fmt: skip


def _one(console: Console, seed: int, scenario: Scenario, *, shrink: bool, log: bool, html: Path | None) -> int:
    from jsonqueue.simulation.world import World

    world = World(seed, scenario, keep=log or html is not None)
    verdict = world.run()
    if log:
        for entry in world.trace.entries:
            console.json(_logged(entry)) if console.as_json else console.line(str(entry))
    _show(console, _shrunk(console, verdict) if shrink and not verdict.ok else verdict, logged=log)
    if html is not None:
        from jsonqueue.simulation.report import page

        written(html, page(verdict, list(world.trace.entries)))
        console.note(f"wrote {html}")
    return 0 if verdict.ok else 1


def _logged(entry: Entry) -> dict[str, Any]:
    return {"at_ms": entry.at_us / 1000, "who": entry.who, "what": entry.what, "detail": entry.detail}


def _shrunk(console: Console, verdict: Verdict) -> Verdict:
    from jsonqueue.simulation import shrink

    smaller = shrink(verdict)
    before, after = len(verdict.scenario.faults), len(smaller.scenario.faults)
    console.note(f"shrunk: {plural(before, 'fault')} → {after}, {plural(verdict.scenario.tasks, 'task')} → {smaller.scenario.tasks}")
    return smaller


def _swarm(console: Console, seeds: range, *, shrink: bool) -> int:
    from jsonqueue.simulation import run_seeds

    events = virtual_ms = failed = 0
    took_s, faults = 0.0, Counter[str]()
    for verdict in run_seeds(seeds):
        events += verdict.events + verdict.operations
        virtual_ms += verdict.virtual_ms
        took_s += verdict.took_s
        faults.update(verdict.faults)
        if not verdict.ok:
            failed += 1
            _show(console, _shrunk(console, verdict) if shrink else verdict, logged=False)
    if console.as_json:
        console.json(
            {
                "seeds": len(seeds), "failed": failed, "events": events, "virtual_ms": virtual_ms, "processor_s": round(took_s, 3),
                "faults": dict(faults),
            }
        )  # fmt: skip
        return 1 if failed else 0
    console.facts(
        [
            ("seeds", f"{seeds.start} to {seeds.stop - 1}"),
            ("events", f"{count(events)}, {count(sum(faults.values()))} of them faults"),
            ("time", f"{_span(virtual_ms)} of virtual time in {took_s:.1f} s of a processor ({_times(virtual_ms, took_s)})"),
            ("verdict", f"{failed} of {plural(len(seeds), 'world')} broke a promise" if failed else "no promise was broken"),
        ]
    )
    return 1 if failed else 0


def _show(console: Console, verdict: Verdict, *, logged: bool, again: bool = True) -> None:
    import msgspec

    from jsonqueue.simulation import reproduce

    if console.as_json:
        shown = msgspec.to_builtins(verdict)
        console.json({name: value for name, value in shown.items() if name not in {"depth", "took_s"}} | {"reproduce": reproduce(verdict)})
        return
    if not verdict.ok and not logged:
        for line in verdict.last[-20:]:
            console.line(line)
        console.line()
    console.facts(_facts(verdict))
    console.line()
    _headline(console, verdict)
    if not verdict.ok and again:
        console.line(f"  again:  {reproduce(verdict)}")


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    totals, scenario = verdict.totals, verdict.scenario
    faults = ", ".join(f"{name} × {count(times)}" for name, times in verdict.faults.items()) or "none"
    return [
        ("seed", str(verdict.seed)),
        (
            "world",
            f"{plural(scenario.publishers, 'publisher')}, {plural(scenario.consumers, 'consumer')}, {plural(scenario.tasks, 'task')}",
        ),
        ("faults", faults),
        ("published", f"{count(totals.published)}, {count(totals.acknowledged)} acknowledged"),
        ("ended", f"{count(totals.completed)} completed, {count(totals.dead)} dead, {count(totals.cancelled)} cancelled"),
        ("runs", f"{count(totals.runs)}, {plural(totals.redelivered, 'task')} more than once"),
        ("events", f"{count(verdict.events)}, and {plural(verdict.operations, 'disk operation')}"),
        ("time", f"{verdict.virtual_ms / 1000:,.3f} s of virtual time"),
        ("trace", verdict.digest),
    ]


def _headline(console: Console, verdict: Verdict) -> None:
    totals = verdict.totals
    if not verdict.ok:
        text = f"✗ {verdict.violation}"
    else:
        text = (
            f"✓ lost {totals.lost} · unexpected {totals.unexpected} · duplicated {totals.duplicated} · deadlocked 0: every promise was kept"
        )
    if not console.person:
        console.line(text)
        return
    from rich.text import Text

    console.show(Text(text, style="bold green" if verdict.ok else "bold red"))
    console.note(f"{verdict.took_s:.2f} s of a processor ({_times(verdict.virtual_ms, verdict.took_s)})")


def _span(virtual_ms: int) -> str:
    days = virtual_ms / 86_400_000
    return f"{days / 365:.2f} years" if days > 365 else f"{days:,.1f} days" if days > 2 else f"{virtual_ms / 1000:,.0f} s"


def _times(virtual_ms: int, took_s: float) -> str:
    return f"{virtual_ms / 1000 / max(took_s, 1e-9):,.0f} × real time"
