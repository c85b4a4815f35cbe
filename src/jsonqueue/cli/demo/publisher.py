"""A publisher of the demo: a process that gets its tasks on standard input and publishes them."""

from __future__ import annotations

import sys
import time

import orjson

from jsonqueue.cli.demo.speaking import Speaker
from jsonqueue.cli.processes import play
from jsonqueue.client.publisher import Publisher
from jsonqueue.task import TaskIn

__all__ = ["main"]


def main(queue_dir: str) -> None:
    """Publish all of standard input; each line is ``[id, data]``."""
    tasks = [TaskIn(id=task_id, data=data) for task_id, data in map(orjson.loads, sys.stdin.buffer)]
    began = time.monotonic()
    with Speaker() as speaker, Publisher(queue_dir) as publisher:
        done = publisher.publish_many(tasks, batch_max=100, on_progress=lambda answered: speaker.say(published=answered))
        speaker.say(published=done.published, duplicates=done.duplicates, seconds=time.monotonic() - began)


if __name__ == "__main__":
    play(main)
