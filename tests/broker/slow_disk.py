"""A broker process whose disk takes as long as the test says: what test_slow_disk starts in place of the real entry point.

Nothing sleeps: where a gate is shut (there is no byte in its pipe), what comes to it says so and waits until the test opens it.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Any

from jsonqueue.broker import consumer_broker, process
from jsonqueue.storage.files import RealFiles

GATES = "JSONQUEUE_TESTS_GATES"
"""The fd that hears who waits, and those of the gates, in the order of :data:`NAMES`."""

NAMES = ("jsonqueue-publisher-broker sync", "jsonqueue-consumer-broker sync", "jsonqueue-consumer-broker load")


def _through_the_gate(act: Callable[..., Any], name: str) -> Callable[..., Any]:
    told, *gates = map(int, os.environ[GATES].split(","))
    if name not in NAMES:
        return act
    place = NAMES.index(name)
    gate = select.poll()
    gate.register(gates[place], select.POLLIN)

    def wait_and_act(*arguments: Any, **options: Any) -> Any:
        if not gate.poll(0):
            os.write(told, bytes([place]))
            gate.poll()
        return act(*arguments, **options)

    return wait_and_act


def main() -> None:
    role = sys.argv[1]
    RealFiles.sync = _through_the_gate(RealFiles.sync, f"{role} sync")
    RealFiles.sync_folder = _through_the_gate(RealFiles.sync_folder, f"{role} sync")
    consumer_broker.load_state = _through_the_gate(consumer_broker.load_state, f"{role} load")
    process.main()
