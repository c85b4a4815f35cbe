"""What each kind of fault does to the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jsonqueue.event import EventOwner
from jsonqueue.simulation.scenario import Fault

if TYPE_CHECKING:
    from jsonqueue.simulation.world import World

__all__ = ["strike"]

SYNC_US, SLOW_SYNC_US = 180, 18_000


def strike(world: World, fault: Fault) -> None:
    """Let it happen now."""
    _STRIKE[fault.kind](world, fault)


def _kill_broker(world: World, role: EventOwner) -> None:
    broker = world.broker(role)
    if broker is not None:
        broker.kill()


def _light_fuse(world: World, fault: Fault) -> None:
    if brokers := world.brokers():
        brokers[fault.target % len(brokers)].fuse = fault.amount


def _light_fuse_of_the_checkpoint(world: World, fault: Fault) -> None:
    world.manager.fuse, world.manager.victim = fault.amount, fault.target


def _light_power_fuse(world: World, fault: Fault) -> None:
    world.power_fuse = fault.amount


def _stall_consumer(world: World, fault: Fault) -> None:
    world.consumers[fault.target % len(world.consumers)].stall(fault.amount)


def _stall_broker(world: World, fault: Fault) -> None:
    if brokers := world.brokers():
        brokers[fault.target % len(brokers)].stall(fault.amount)


def _break_pipe(world: World) -> None:
    if open_links := [link for link in world.links.values() if link.open]:
        world.life_chance.choice(open_links).snap()


def _fail_sync(world: World) -> None:
    world.disk.sync_fails = 1


def _fill_disk(world: World, fault: Fault) -> None:
    left = world.life_chance.randrange(3_000)
    world.disk.fill(left // 30 if fault.target == 2 else left, world.scheduler.now_us)
    world.scheduler.after(fault.amount, world.disk.empty)


def _slow_disk(world: World, fault: Fault) -> None:
    world.disk.sync_us = SLOW_SYNC_US
    world.scheduler.after(fault.amount, _disk_as_ever, world)


def _disk_as_ever(world: World) -> None:
    world.disk.sync_us = SYNC_US


def _jump(world: World, fault: Fault) -> None:
    world.clock.offset_ms += fault.amount
    world.look_at_the_clock()


_STRIKE: dict[str, Callable[[World, Fault], None]] = {
    "kill publisher broker": lambda world, fault: _kill_broker(world, EventOwner.PUBLISHER_BROKER),
    "kill consumer broker": lambda world, fault: _kill_broker(world, EventOwner.CONSUMER_BROKER),
    "kill manager": lambda world, fault: world.manager.kill(),
    "stop manager": lambda world, fault: world.manager.stop(),
    "kill consumer": lambda world, fault: world.lose_consumer(world.consumers[fault.target % len(world.consumers)], "killed"),
    "stop consumer": lambda world, fault: world.consumers[fault.target % len(world.consumers)].leave(),
    "kill publisher": lambda world, fault: world.lose_publisher(fault.target % len(world.publishers)),
    "kill at operation": _light_fuse,
    "kill in checkpoint": _light_fuse_of_the_checkpoint,
    "power cut": lambda world, fault: world.cut_power(),
    "power cut at operation": _light_power_fuse,
    "stall consumer": _stall_consumer,
    "stall broker": _stall_broker,
    "break pipe": lambda world, fault: _break_pipe(world),
    "failed sync": lambda world, fault: _fail_sync(world),
    "full disk": _fill_disk,
    "slow disk": _slow_disk,
    "clock jump": _jump,
}
