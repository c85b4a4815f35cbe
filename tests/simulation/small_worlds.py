"""Explores the small worlds and prints what was seen: ``python -m simulation.small_worlds [--long] [--states-max N] [--only WORD]``.

Exit status 1 if a promise is broken; the shortest trace that leads there is printed.
"""

from __future__ import annotations

import argparse
import sys
import time

from jsonqueue.simulation.scopes import LONG, SHORT
from jsonqueue.simulation.small import Explored, Scope, explore
from jsonqueue.simulation.verdict import Violation

_HEAD = f"{'states':>9} {'transitions':>11} {'calls':>7} {'depth':>5}  {'exhausted':9} {'s':>6}  world"


def main() -> None:
    parser = argparse.ArgumentParser(description="explore small worlds completely")
    parser.add_argument("--long", action="store_true", help="the larger ones too")
    parser.add_argument("--states-max", type=int, default=500_000, help="distinct states of each at the most")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    options = parser.parse_args()
    chosen = {name: scope for name, scope in (SHORT | LONG if options.long else SHORT).items() if options.only in name}
    if not chosen:
        parser.error(f"no world has {options.only!r} in its name")
    print(_HEAD, flush=True)
    seen = [_explored(name, scope, options.states_max) for name, scope in chosen.items()]
    capped = sum(not one.complete for one in seen)
    cut_short = f"; {capped} of them not explored to their end" if capped else ""
    print(f"{sum(one.states for one in seen):9}  states in {len(chosen)} worlds, and no broken promise{cut_short}")


def _explored(name: str, scope: Scope, states_max: int) -> Explored:
    began = time.process_time()
    try:
        seen = explore(scope, states_max=states_max)
    except Violation as found:
        print(f"FOUND {found}\n  in: {name}", *getattr(found, "__notes__", []), sep="\n", flush=True)
        sys.exit(1)
    took, done = time.process_time() - began, "yes" if seen.complete else "no"
    print(f"{seen.states:9} {seen.transitions:11} {seen.reactions:7} {seen.depth:5}  {done:9} {took:6.1f}  {name}", flush=True)
    return seen


if __name__ == "__main__":
    main()
