"""Worlds without end: the long run of the simulator. See ``scripts/simulate-long``.

Seeds are handed out to processes in chunks. Whatever ends the run, the account says which seeds are done: chunks that are under way are
finished after Ctrl-C, and done again after a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from jsonqueue.simulation import Verdict, reproduce, run_seeds, shrink

CHUNK = 50
SEEDS = 20_000
FIRST = 1_000_000
"""Seeds below are those of the tests."""


class Account(msgspec.Struct):
    """What has been run so far, in this folder."""

    next_seed: int = FIRST
    seeds: int = 0
    events: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    faults: dict[str, int] = {}
    failed: list[int] = []

    def add(self, chunk: dict[str, Any]) -> None:
        """Count a chunk in."""
        self.seeds += chunk["seeds"]
        self.events += chunk["events"]
        self.virtual_s += chunk["virtual_s"]
        self.cpu_s += chunk["cpu_s"]
        self.faults = dict(Counter(self.faults) + Counter(chunk["faults"]))
        self.failed += [failure["seed"] for failure in chunk["failures"]]

    def rate(self) -> str:
        """How fast it went."""
        hours = max(self.wall_s, 1e-9) / 3600
        return f"{self.seeds / hours:,.0f} worlds and {self.events / hours:,.0f} events an hour"


def run_chunk(first: int, count: int) -> dict[str, Any]:
    """In a process of its own: run these seeds, shrink those that fail."""
    began_s, faults = time.process_time(), Counter[str]()
    events, virtual_ms, failures = 0, 0, []
    for verdict in run_seeds(range(first, first + count)):
        events += verdict.events + verdict.operations
        virtual_ms += verdict.virtual_ms
        faults.update(verdict.faults)
        if not verdict.ok:
            failures.append(_failure(verdict, shrink(verdict)))
    return {
        "seeds": count, "events": events, "virtual_s": virtual_ms / 1000, "cpu_s": time.process_time() - began_s, "faults": dict(faults),
        "failures": failures,
    }  # fmt: skip


def _failure(verdict: Verdict, smaller: Verdict) -> dict[str, Any]:
    """As a file of tests/regressions; what was wrong is for a person to say."""
    return {
        "what": "", "found": smaller.violation, "seed": smaller.seed, "scenario": msgspec.to_builtins(smaller.scenario),
        "again": reproduce(smaller), "first": verdict.violation,
    }  # fmt: skip


class LongRun:
    """Hands out chunks until enough is done, the time is over, or somebody has had enough."""

    def __init__(self, folder: Path, *, seeds: int, jobs: int, until_s: float, first: int | None) -> None:
        self._folder = folder
        self._file = folder / "account.json"
        self._seeds, self._jobs, self._until_s = seeds, jobs, until_s
        self.account = msgspec.json.decode(self._file.read_bytes(), type=Account) if self._file.exists() else Account()
        if first is not None:
            self.account.next_seed = first
        self._stopping = False
        self._before_s = self.account.wall_s
        self._began_s = time.monotonic()
        self._done: dict[int, int] = {}
        self.this = Account()

    def run(self) -> None:
        """Until the end."""
        self._folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        with ProcessPoolExecutor(self._jobs, mp_context=get_context("spawn"), initializer=_leave_signals_to_the_parent) as pool:
            under_way: dict[Future[dict[str, Any]], int] = {}
            handed_out, first = 0, self.account.next_seed
            while True:
                while not self._over and handed_out < self._seeds and len(under_way) < 2 * self._jobs:
                    count = min(CHUNK, self._seeds - handed_out)
                    under_way[pool.submit(run_chunk, first + handed_out, count)] = first + handed_out
                    handed_out += count
                if not under_way:
                    return
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(under_way.pop(future), future.result())

    @property
    def _over(self) -> bool:
        return self._stopping or time.monotonic() >= self._until_s

    def _stop(self, number: int, frame: object) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        print("finishing what is under way; once more ends it at once", file=sys.stderr)

    def _take(self, first: int, chunk: dict[str, Any]) -> None:
        for failure in chunk["failures"]:
            path = self._folder / f"seed-{failure['seed']}.json"
            kept = {name: failure[name] for name in ("what", "found", "seed", "scenario")}
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            print(f"{failure['first']}\n  shrunk: {failure['found']}\n  again:  {failure['again']}\n  kept:   {path}", file=sys.stderr)
        for account in (self.account, self.this):
            account.add(chunk)
        self._done[first] = chunk["seeds"]
        while self.account.next_seed in self._done:
            self.account.next_seed += self._done.pop(self.account.next_seed)
        self.this.wall_s = time.monotonic() - self._began_s
        self.account.wall_s = self._before_s + self.this.wall_s
        self._save()
        print(f"\r{self.this.seeds:,} worlds, {self.this.events:,} events, {len(self.this.failed)} failed", end="", file=sys.stderr)

    def _save(self) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self.account)))
        draft.replace(self._file)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/simulate-long", description="The long run of the simulator.")
    parser.add_argument("--seeds", type=int, help=f"so many worlds (default: {SEEDS:,}, or as many as fit into --hours)")
    parser.add_argument("--hours", type=float, help="for so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each processor)")
    parser.add_argument("--first", type=int, help="the first seed (default: where the last run stopped)")
    parser.add_argument("--folder", type=Path, default=Path(".simulate-long"), help="where the account and the failures are kept")
    said = parser.parse_args()
    until_s = time.monotonic() + said.hours * 3600 if said.hours else float("inf")
    seeds = said.seeds or (sys.maxsize if said.hours else SEEDS)
    long = LongRun(said.folder, seeds=seeds, jobs=said.jobs, until_s=until_s, first=said.first)
    long.run()
    this, total = long.this, long.account
    for line in (
        f"\r{this.seeds:,} worlds, {this.events:,} events, {len(this.failed)} failed; {this.rate()}, {said.jobs} at a time",
        f"{this.virtual_s / 86_400:,.1f} days of virtual time in {this.cpu_s:,.0f} s of processors",
        f"in all, in {said.folder}: {total.seeds:,} worlds, {total.events:,} events; the next run begins at {total.next_seed}",
    ):
        print(line, file=sys.stderr)
    print(json.dumps({"seeds": this.seeds, "events": this.events, "virtual_s": round(this.virtual_s), "cpu_s": round(this.cpu_s, 1),
                      "wall_s": round(this.wall_s, 1), "failed": this.failed, "next_seed": total.next_seed}))  # fmt: skip
    return 1 if this.failed else 0


if __name__ == "__main__":
    sys.exit(main())
