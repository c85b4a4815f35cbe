#!/usr/bin/env python3
"""Work off what publish.py published: measure the folders, write the report. For cron, some minutes later, or whenever the machine is up.

    python work_off.py reports/ --queue queue_data

It serves the queue itself, works until tonight's report is written, and stops; after that queue.json alone holds everything. A folder that
cannot be measured is tried three times, and then the report, which waits for it, is a dead letter that says so: `jsonqueue dead list`
shows both, and `jsonqueue dead replay` gives them another chance.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jsonqueue import BrokerManager, Consumer, JsonQueueError, Task, TaskHandle


def handle(task: Task[Any], *, reports: Path, queue: Path) -> dict[str, Any]:
    """One handler for both kinds of task: what to do stands in the payload."""
    if task.data["what"] == "measure":
        return measure(Path(task.data["folder"]))
    return write_report(task.data, reports=reports, queue=queue)


def measure(folder: Path) -> dict[str, Any]:
    """How many files, how many bytes, and which is the largest."""
    sizes = dict(_sizes(folder))
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return {"folder": folder.name, "files": len(sizes), "bytes": sum(sizes.values()), "largest": largest}


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            yield str(path.relative_to(folder)), path.lstat().st_size


def write_report(about: dict[str, Any], *, reports: Path, queue: Path) -> dict[str, Any]:
    """The report, from the results of the tasks it waited for. They are complete: that is what `after` means."""
    rows = sorted((TaskHandle(queue, name).result(timeout=10) for name in about["of"]), key=lambda row: -row["bytes"])
    lines = [f"# {about['folder']}, {about['night']}", "", "| folder | files | bytes | largest file |", "|---|---:|---:|---|"]
    lines += [f"| {row['folder']} | {row['files']:,} | {row['bytes']:,} | {row['largest']} |" for row in rows]
    path = reports / f"{about['night']}.md"
    path.write_text("\n".join([*lines, "", f"Total: {sum(row['bytes'] for row in rows):,} bytes.", ""]))
    return {"report": str(path)}


def main() -> int:
    options = _options()
    options.reports.mkdir(parents=True, exist_ok=True)
    with BrokerManager(options.queue):
        work = partial(handle, reports=options.reports.resolve(), queue=options.queue.resolve())
        with Consumer(options.queue, work, concurrency=4):
            try:
                done = TaskHandle(options.queue, f"report-{options.night}").result(timeout=options.patience)
            except JsonQueueError as error:  # it is dead, or was never published, or takes too long
                print(f"no report: {error}", file=sys.stderr)
                return error.exit_status
    print(done["report"])
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the folders that publish.py published, and write the report.")
    parser.add_argument("reports", type=Path, help="folder for the reports")
    today = datetime.now().astimezone().date().isoformat()
    parser.add_argument("night", nargs="?", default=today, help="date of the report (default: today)")
    parser.add_argument("--queue", type=Path, default=Path("queue_data"), help="the queue's folder (default: queue_data)")
    parser.add_argument("--patience", type=float, default=6 * 3600, help="give up after so many seconds (default: six hours)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
