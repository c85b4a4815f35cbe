"""A publisher that finds no manager appends by itself, by the PublisherBroker's own code: see jsonqueue.client.direct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonqueue.errors import StorageError
from jsonqueue.event import EventOwner, Mark, Write, Written
from jsonqueue.simulation.disk import Killed, ProcessFiles
from jsonqueue.simulation.trace import merge
from jsonqueue.task import StoredTaskIn

if TYPE_CHECKING:
    from jsonqueue.simulation.publisher import PublisherClient
    from jsonqueue.simulation.world import World

__all__ = ["append_directly"]


def append_directly(world: World, publisher: PublisherClient, batches: list[list[StoredTaskIn]]) -> list[Written]:
    """Append these, if nobody holds the lock. An answer for each batch that is durable; [] where nobody is left to hear them."""
    if world.manager.alive or world.appending or not world.lock(EventOwner.PUBLISHER_BROKER):
        return []
    answers: list[Written] = []

    def spend(spent_us: int) -> None:
        if publisher.alive:
            world.operated()
            world.scheduler.advance(spent_us)
        if not publisher.alive:
            files.dead = True
            raise Killed

    files = ProcessFiles(world.disk, spend)
    merge(publisher.clock, world.disk_clock)
    publisher.note("appends", "by itself")
    broker = world.cast.publisher_broker(files, world.clock, world.config, announce=lambda mark: _appended(world, publisher, mark))
    world.appending = True
    try:
        broker.open()
        _appended(world, publisher, broker.mark)
        for batch in batches:
            broker.step([(0, Write(0, batch))], lambda peer, event: answers.append(event))  # type: ignore[arg-type]
        broker.close()
    except (StorageError, Killed):
        pass
    finally:
        world.appending = False
    if not publisher.alive:
        return []
    publisher.note("appended", f"{len(answers)} batches")
    return answers


def _appended(world: World, publisher: PublisherClient, mark: Mark) -> None:
    publisher.note("durable", f"through batch {mark.number}")
    merge(world.disk_clock, publisher.clock)
    world.judge.announced(publisher, mark)
