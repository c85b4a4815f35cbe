#!/usr/bin/env python3
"""Publish tonight's report on a folder: one task for each of its subfolders, and one that sums them up. For cron.

    python publish.py ~/projects --queue queue_data            at the next moment
    python publish.py ~/projects --queue queue_data --at 02:00

No broker needs to run: the tasks are on the disk when this returns, and run when brokers start (work_off.py). The ids hold the date, so
that publishing twice makes no second report.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from pathlib import Path

from jsonqueue import Publisher, TaskIn


def main() -> None:
    options = _options()
    folder: Path = options.folder.resolve()
    run_at = _next(options.at) if options.at else datetime.now().astimezone()
    night = run_at.date().isoformat()
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = [f"usage-{night}-{number}" for number in range(len(parts))]
    with Publisher(options.queue) as publisher:
        measured = publisher.publish_many(
            TaskIn(id=name, data={"what": "measure", "folder": str(part)}, run_at_ms=int(run_at.timestamp() * 1000))
            for name, part in zip(names, parts, strict=True)
        )
        # Blocked until the last of them is complete; its deadline says that a report which is a day late is of no use to anybody.
        report = publisher.publish(
            {"what": "report", "folder": str(folder), "night": night, "of": names},
            id=f"report-{night}",
            after=names,
            run_at=run_at,
            deadline=run_at + timedelta(days=1),
        )
    print(f"{measured.published} folders to measure, {measured.duplicates} were published before; report: {report.id}")


def _next(clock: str) -> datetime:
    """The next moment at which a clock here shows ``clock`` (HH:MM)."""
    now = datetime.now().astimezone()
    hour, minute = map(int, clock.split(":"))
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return moment if moment > now else moment + timedelta(days=1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Publish tonight's report on a folder.")
    parser.add_argument("folder", type=Path, help="report on this folder")
    parser.add_argument("--queue", default="queue_data", help="the queue's folder (default: queue_data)")
    parser.add_argument("--at", metavar="HH:MM", help="not before this time of day")
    return parser.parse_args()


if __name__ == "__main__":
    main()
