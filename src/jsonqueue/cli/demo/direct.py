"""The direct pass: the same work on the same files, without a queue. Gets its share on standard input and says the totals."""

from __future__ import annotations

import sys
from dataclasses import asdict

import orjson

from jsonqueue.cli.demo.sources import DemoTask
from jsonqueue.cli.demo.speaking import Speaker
from jsonqueue.cli.demo.totals import Totals

__all__ = ["main"]


def main() -> None:
    """Work through standard input; each line is ``[id, data]``."""
    totals = Totals()
    with Speaker() as speaker:
        for task in [DemoTask(*orjson.loads(line)) for line in sys.stdin.buffer]:
            totals.add(task.where, task.direct())
            speaker.say(done=totals.tasks)
        speaker.say(totals=asdict(totals))


if __name__ == "__main__":
    main()
