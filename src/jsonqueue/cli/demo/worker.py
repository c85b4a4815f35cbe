"""A worker of the demo: a consumer process that says what it does."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from jsonqueue.cli.demo.facts import Facts, facts_of
from jsonqueue.cli.demo.speaking import Speaker, when_input_ends
from jsonqueue.cli.processes import play
from jsonqueue.client.consumer import Consumer
from jsonqueue.task import AnyTask

__all__ = ["main"]

_CONCURRENCY = 4
"""While one file is being parsed the next ones are being read."""


def main(queue_dir: str, name: str) -> None:
    """Work until told to stop, or until the demo is gone."""
    speaker = Speaker()
    done = 0

    async def handle(task: AnyTask) -> Facts:
        nonlocal done
        facts = await facts_of(task.data)
        done += 1
        speaker.say(done=done, current=_current(task.data))
        return facts

    consumer = Consumer(queue_dir, handle, name=name, concurrency=_CONCURRENCY)
    when_input_ends(lambda: consumer.stop(5.0))
    with speaker:
        consumer.run(drain_timeout=5.0)


def _current(data: dict[str, Any]) -> str:
    return str(PurePath(data["path"])) if "path" in data else f"line {data['line']}"


if __name__ == "__main__":
    play(main)
