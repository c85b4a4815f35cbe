"""A broker process that finds no memory at a place, while a file of that name lies beside the queue: what test_no_memory starts instead.

``… once``: the file is gone then, and the next one finds some.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonqueue.broker import consumer_broker, process, publisher_broker
from jsonqueue.storage.log import LogWriter

PLACES = ("take", "append", "rotate", "load")


def _short(act: Callable[..., Any], place: str, *, afterwards: bool = False) -> Callable[..., Any]:
    """``afterwards``: it is done, and nobody gets to know."""
    here = Path(sys.argv[2]).parent / f"{sys.argv[1].removeprefix('jsonqueue-')} {place}"

    def act_or_not(*arguments: Any, **options: Any) -> Any:
        for_once = here.with_name(f"{here.name} once")
        if not for_once.exists() and not here.exists():
            return act(*arguments, **options)
        for_once.unlink(missing_ok=True)
        if afterwards:
            act(*arguments, **options)
        raise MemoryError

    return act_or_not


def main() -> None:
    publisher_broker.Admission.decide = _short(publisher_broker.Admission.decide, "take")
    consumer_broker.ConsumerBroker._take_in = _short(consumer_broker.ConsumerBroker._take_in, "take")
    LogWriter.append = _short(LogWriter.append, "append", afterwards=True)
    LogWriter.rotate = _short(LogWriter.rotate, "rotate", afterwards=True)
    publisher_broker.load_ids = _short(publisher_broker.load_ids, "load")
    consumer_broker.load_state = _short(consumer_broker.load_state, "load")
    process.main()
