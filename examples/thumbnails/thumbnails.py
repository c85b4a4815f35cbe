#!/usr/bin/env python3
"""Make thumbnails of all PNG pictures in a folder, through a queue.

    python thumbnails.py ~/Pictures thumbnails/ --queue queue_data

Run it twice: the second time every picture is known and nothing is done. Kill it with -9 in the middle and run it again: the queue goes on
where it was. A file that is no PNG is cancelled with the reason; nothing would come of trying it again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from png import NotSupported, read_png, shrink, write_png

from jsonqueue import BrokerManager, Cancel, Consumer, Publisher, Task, TaskFailed, TaskHandle, TaskIn


def make_thumbnail(task: Task[Any]) -> dict[str, Any]:
    """The handler: one picture, one thumbnail. Running it twice does no harm, since the file is replaced as a whole."""
    source, target = Path(task.data["source"]), Path(task.data["target"])
    try:
        picture = read_png(source.read_bytes())
    except NotSupported as error:
        raise Cancel(str(error)) from None  # it will be no better next time
    small = shrink(picture, longest=task.data["longest"])
    _replace(target, write_png(small))
    return {"from": [picture.width, picture.height], "to": [small.width, small.height], "bytes": target.stat().st_size}


def _replace(target: Path, data: bytes) -> None:
    """Whoever looks sees either no thumbnail or all of it."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        file.write(data)
    os.replace(file.name, target)


def tasks(pictures: Path, thumbnails: Path, longest: int) -> Iterator[TaskIn[dict[str, Any]]]:
    """A task for each picture. Its id is made of what it is about, so that the same picture makes no second task; a changed one does."""
    for source in sorted(pictures.glob("*.png")):
        target = thumbnails / source.name
        about = sha256(source.read_bytes() + str(target).encode() + str(longest).encode()).hexdigest()
        yield TaskIn(id=f"thumbnail-{about[:24]}", data={"source": str(source), "target": str(target), "longest": longest})


def main() -> None:
    options = _options()
    thumbnails: Path = options.thumbnails.resolve()
    thumbnails.mkdir(parents=True, exist_ok=True)
    # The brokers are processes; the consumers here are child processes too, so that pictures are shrunk on all processors.
    with BrokerManager(options.queue), Publisher(options.queue) as publisher:
        given = publisher.publish_many(tasks(options.pictures.resolve(), thumbnails, options.longest))
        print(f"{given.published} pictures published, {given.duplicates} known already")
        with Consumer(options.queue, make_thumbnail, concurrency=os.cpu_count() or 1, timeout=300):
            for task_id in given.ids:
                print(_told(TaskHandle(options.queue, task_id)))


def _told(handle: TaskHandle) -> str:
    try:
        done = handle.result(timeout=600)
    except TaskFailed as error:
        return f"  {Path(handle.task().data['source']).name}: {error.status}, {error.reason}"
    name = Path(handle.task().data["source"]).name
    return f"  {name}: {done['from'][0]} x {done['from'][1]} to {done['to'][0]} x {done['to'][1]}, {done['bytes']:,} bytes"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make thumbnails of all PNG pictures in a folder, through a queue.")
    parser.add_argument("pictures", type=Path, help="folder with the pictures")
    parser.add_argument("thumbnails", type=Path, help="folder for the thumbnails")
    parser.add_argument("--queue", default="queue_data", help="the queue's folder (default: queue_data)")
    parser.add_argument("--longest", type=int, default=160, help="longest side of a thumbnail, in pixels (default: 160)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
