"""The run as one HTML page: a timeline by process, the depth of the queue, the first error, and the life of any task.

Self-contained: one file, no network, no library. The trace travels in it as JSON and is drawn by a short script onto a canvas, so that tens
of thousands of events stay quick; of a longer trace the part around the faults and the violation is kept, and the page says so.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jsonqueue.simulation.running import reproduce
from jsonqueue.simulation.trace import Entry
from jsonqueue.simulation.verdict import Verdict

__all__ = ["page"]

_EVENTS_MAX = 60_000
_DEPTHS_MAX = 2_000


def page(verdict: Verdict, entries: Sequence[Entry]) -> str:
    """The whole page."""
    template = files("jsonqueue.simulation").joinpath("report.html").read_text(encoding="utf-8")
    shown = entries if len(entries) <= _EVENTS_MAX else entries[-_EVENTS_MAX:]
    # "</script" would end the script early, and "<!--" keep it from ending, whatever a task or a probe is called.
    data = json.dumps(_data(verdict, shown, len(entries)), separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("{{title}}", html.escape(f"seed {verdict.seed}")).replace("{{data}}", data)


def _data(verdict: Verdict, entries: Sequence[Entry], length: int) -> dict[str, Any]:
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    step = -(-len(verdict.depth) // _DEPTHS_MAX) or 1
    return {
        "seed": verdict.seed,
        "ok": verdict.ok,
        "violation": verdict.violation,
        "task": verdict.task_id,
        "reproduce": reproduce(verdict),
        "digest": verdict.digest,
        "events": verdict.events,
        "operations": verdict.operations,
        "virtual_ms": verdict.virtual_ms,
        "faults": verdict.faults,
        "world": [verdict.scenario.publishers, verdict.scenario.consumers, verdict.scenario.tasks],
        "totals": {name: getattr(verdict.totals, name) for name in verdict.totals.__struct_fields__},
        "depth": [[at_us / 1000, depth] for at_us, depth in verdict.depth[::step]],
        "left_out": length - len(entries),
        "entries": [
            [entry.at_us, names.setdefault(entry.who, len(names)), kinds.setdefault(entry.what, len(kinds)), entry.detail, list(entry.ids)]
            for entry in entries
        ],
        "names": list(names),
        "kinds": list(kinds),
    }
