"""Worlds of shapes that no seed draws: long chains, epochs of nine digits, somebody who looks on all the while."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from jsonqueue.config import Config
from jsonqueue.errors import CorruptQueue, StorageError
from jsonqueue.retry import Linear, Never
from jsonqueue.simulation import Fault, Habits, Scenario, Verdict, Violation
from jsonqueue.simulation.disk import ProcessFiles
from jsonqueue.simulation.work import Arrival
from jsonqueue.simulation.world import World
from jsonqueue.storage.looking import view_of
from jsonqueue.storage.queue_file import QUEUE, QueueHeader, QueueWriter

__all__ = ["chain", "late_epochs", "looked_at"]

_BROKERS = ("kill publisher broker", "kill consumer broker")
_BUSY = Config(retry=Linear(step_ms=20), attempts_max=1_000, flush_interval_ms=15, segment_max_bytes=4_096, disk_reserve_bytes=0)


def chain(seed: int, *, links: int = 500) -> Verdict:
    """Each task waits for the one before; the first dies, and all with it; somebody replays them all, and once more."""
    work = [Arrival(0, 100, fails_first=1, after=f"t{number - 1}" if number > 1 else "") for number in range(1, links + 1)]
    scenario = Scenario(
        publishers=1,
        consumers=2,
        tasks=links,
        batch=100,
        spread_us=50_000,
        habits=Habits(work_us=(100, 100), replays=2, asked_us=40_000),
        faults=(Fault(70_000, "kill consumer broker"), Fault(160_000, "kill consumer broker")),
        config=Config(retry=Never(), attempts_max=1, flush_interval_ms=60, disk_reserve_bytes=0),
    )
    return World(seed, scenario, work=work).run()


def late_epochs(seed: int) -> Verdict:
    """A queue whose writers have started a hundred million times, less a few."""
    world = World(seed, Scenario(faults=tuple(Fault(30_000 * n, _BROKERS[n % 2]) for n in range(1, 30)), config=_BUSY))
    writer = QueueWriter(world.disk, QUEUE, QueueHeader(epochs=(99_999_996, 99_999_996), closed=True))
    writer.finish()
    writer.close()
    world.disk.sync_folder()
    return world.run()


class _Onlooker:
    """Looks at the files, as `status`, `list` and `show` do, while others write them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._files = ProcessFiles(world.disk, world.scheduler.advance)
        self._ended: set[str] = set()

    def look(self, times: int) -> None:
        """What was acknowledged before must be there, and what had ended must have ended."""
        known = set(self._world.judge.acknowledged_ids)
        try:
            with view_of(self._files) as view:
                seen = {glance.id: glance.status for glance in view.glances()}
        except CorruptQueue as error:
            raise Violation("refused", f"who looks on takes the queue for damaged: {error}") from error
        except (StorageError, OSError) as error:
            raise Violation("broke", f"who looks on is told: {error}") from error
        if self._files.handles:
            raise Violation("broke", f"who looks on has {len(self._files.handles)} files open afterwards")
        if lost := sorted(known - seen.keys()):
            raise Violation("lost", f"{lost[:5]} were acknowledged, and who looks on does not see them", task_id=lost[0])
        ended = {task_id for task_id, status in seen.items() if status.ended}
        if back := sorted(self._ended - ended):
            raise Violation("not linear", f"{back[:5]} had ended, and are seen to go on", task_id=back[0])
        self._ended |= ended
        if times:
            self._world.scheduler.after(500, self.look, times - 1)


def looked_at(seed: int) -> Verdict:
    """Somebody looks on, twice in a millisecond, while brokers die and start, segments are short, and checkpoints many; and to read takes
    long enough for much to happen within a look."""
    work = list(_many(Random(seed), 150))
    scenario = Scenario(
        tasks=len(work),
        batch=5,
        habits=Habits(work_us=(200, 4_000)),
        faults=tuple(Fault(37_000 + 90_000 * n, _BROKERS[n % 2]) for n in range(10)),
        config=_BUSY,
        read_us=(30, 60)[seed % 2],
    )
    world = World(seed, scenario, work=work)
    onlooker = _Onlooker(world)
    world.scheduler.at(10_000, onlooker.look, 1_600)
    return world.run()


def _many(chance: Random, tasks: int) -> Iterator[Arrival]:
    """Of as many priorities as there are tasks, and payloads of all sizes."""
    for number in range(1, tasks + 1):
        after = f"t{chance.randrange(max(1, number - 9), number)}" if number > 1 and chance.random() < 0.2 else ""
        data = b'"' + b"x" * chance.choice((10, 1_500, 3_000, 5_000)) + b'"'
        yield Arrival(number // 3 * 18_000, chance.randrange(4_000), number % 2, priority=chance.randint(-99, 99), after=after, data=data)
