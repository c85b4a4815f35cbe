"""The examples do what they say, on small input."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zlib
from datetime import datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from snippets import environment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = pytest.mark.processes


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """What it prints on standard output."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def python(script: str, *arguments: str | Path, cwd: Path, status: int = 0) -> str:
    return run(sys.executable, EXAMPLES / script, *arguments, cwd=cwd, status=status)


def stored(queue: Path) -> list[dict[str, object]]:
    """The tasks in queue.json, which after a clean stop are all there are."""
    tasks: list[dict[str, object]] = json.loads((queue / "queue.json").read_text())["tasks"]
    return tasks


# ── thumbnails ───────────────────────────────────────────────────────────────────────────────────────────────────────


def loaded_png() -> ModuleType:
    spec = spec_from_file_location("png", EXAMPLES / "thumbnails" / "png.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_folder_of_pictures_becomes_a_folder_of_thumbnails(tmp_path: Path) -> None:
    """Each picture once, a broken one cancelled with its reason; a second run finds everything done."""
    png = loaded_png()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, width, height in (("wide", 320, 80), ("high", 64, 256), ("small", 16, 16)):
        pixels = bytes((x * y + c) & 255 for y in range(height) for x in range(width) for c in range(3))
        (pictures / f"{name}.png").write_bytes(png.write_png(png.Picture(width, height, 3, pixels)))
    (pictures / "broken.png").write_bytes(b"no picture")
    arguments = (pictures, tmp_path / "thumbnails", "--longest", "64")
    first = python("thumbnails/thumbnails.py", *arguments, cwd=tmp_path)
    assert "4 pictures published, 0 known already" in first
    assert "wide.png: 320 x 80 to 64 x 16" in first
    assert "broken.png: cancelled, not a PNG file" in first
    sizes = {path.name: png.read_png(path.read_bytes())[:2] for path in (tmp_path / "thumbnails").iterdir()}
    assert sizes == {"wide.png": (64, 16), "high.png": (16, 64), "small.png": (16, 16)}
    assert "0 pictures published, 4 known already" in python("thumbnails/thumbnails.py", *arguments, cwd=tmp_path)
    assert sorted(str(task["status"]) for task in stored(tmp_path / "queue_data")) == ["cancelled", "completed", "completed", "completed"]


def test_every_filter_of_png_is_undone() -> None:
    """A picture filtered in each of the five ways reads the same."""
    png = loaded_png()
    width, height, step = 7, 5, 3
    rows = [bytes((x * 31 + y * 17) & 255 for x in range(width * step)) for y in range(height)]
    for kind in range(5):
        packed = b"".join(
            bytes([kind]) + filtered(png, kind, row, rows[y - 1] if y else bytes(width * step), step) for y, row in enumerate(rows)
        )
        plain = png.write_png(png.Picture(width, height, 3, b"".join(rows)))
        start = plain.index(b"IDAT") - 4
        again = plain[:start] + png._chunk(b"IDAT", zlib.compress(packed)) + png._chunk(b"IEND", b"")
        assert png.read_png(again).pixels == b"".join(rows), kind


def filtered(png: ModuleType, kind: int, row: bytes, above: bytes, step: int) -> bytes:
    out = bytearray()
    for i, value in enumerate(row):
        left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
        guess = (0, left, above[i], (left + above[i]) // 2, png._paeth(left, above[i], corner))[kind]
        out.append((value - guess) & 255)
    return bytes(out)


def test_a_mean_is_a_mean() -> None:
    """Shrinking four pixels to one gives their mean, channel by channel."""
    png = loaded_png()
    four = png.Picture(2, 2, 3, bytes([0, 10, 100, 4, 10, 100, 8, 10, 100, 12, 30, 200]))
    assert png.shrink(four, longest=1) == png.Picture(1, 1, 3, bytes([6, 15, 125]))


# ── nightly ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, size in (("code", 3000), ("docs", 50), ("empty", 0)):
        (folder / name).mkdir(parents=True)
        if size:
            (folder / name / "large.txt").write_bytes(b"x" * size)
            (folder / name / "small.txt").write_bytes(b"x")
    return folder


def test_a_report_published_without_brokers_is_written_when_they_come(tmp_path: Path) -> None:
    """The measuring comes first, the report sums it up; publishing twice makes no second one."""
    folder = project(tmp_path)
    night = datetime.now().astimezone().date().isoformat()
    assert f"3 folders to measure, 0 were published before; report: report-{night}" in python("nightly/publish.py", folder, cwd=tmp_path)
    assert "0 folders to measure, 3 were published before" in python("nightly/publish.py", folder, cwd=tmp_path)
    written = python("nightly/work_off.py", tmp_path / "reports", night, "--patience", "40", cwd=tmp_path)
    assert written.strip() == str(tmp_path / "reports" / f"{night}.md")
    report = Path(written.strip()).read_text()
    assert re.findall(r"^\| (\w+) \| (\d) \| ([\d,]+) \| (\S*) \|$", report, re.MULTILINE) == [
        ("code", "2", "3,001", "large.txt"), ("docs", "2", "51", "large.txt"), ("empty", "0", "0", ""),
    ]  # fmt: skip
    assert {task["status"] for task in stored(tmp_path / "queue_data")} == {"completed"}


def test_a_report_for_later_waits_for_its_time(tmp_path: Path) -> None:
    """With a time of day given nothing runs before it: the tasks are scheduled, and say for when."""
    folder = project(tmp_path)
    later = datetime.now().astimezone() + timedelta(hours=2)
    told = python("nightly/publish.py", folder, "--at", f"{later:%H:%M}", cwd=tmp_path)
    assert f"report-{later.date()}" in told
    tasks = [json.loads(line) for line in run("jsonqueue", "--json", "list", cwd=tmp_path).splitlines()]
    assert [task["status"] for task in tasks] == ["scheduled", "scheduled", "scheduled", "blocked"]
    assert {task["run_at_ms"] for task in tasks} == {int(later.replace(second=0, microsecond=0).timestamp() * 1000)}


def test_a_report_that_nobody_published_is_missed(tmp_path: Path) -> None:
    """The script says so and fails, so that cron tells somebody."""
    (tmp_path / "queue_data").mkdir(mode=0o700)
    python("nightly/work_off.py", tmp_path / "reports", "2026-11-22", "--patience", "5", cwd=tmp_path, status=66)


# ── pipeline ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shell_pipeline_works_off_a_folder(tmp_path: Path) -> None:
    """Each file is compressed once; results and outcomes are in the queue."""
    logs = tmp_path / "logs"
    (logs / "old").mkdir(parents=True)
    texts = {logs / "a.log": b"a line\n" * 500, logs / "old" / "b.log": b"another\n" * 300, logs / "with space.log": b"x" * 1000}
    for path, text in texts.items():
        path.write_bytes(text)
    (logs / "picture.png").write_bytes(b"left alone")
    run(EXAMPLES / "pipeline" / "pipeline.sh", logs, "*.log", cwd=tmp_path)
    assert {path: gzip.decompress(Path(f"{path}.gz").read_bytes()) for path in texts} == texts
    assert not (logs / "picture.png.gz").exists()
    tasks = stored(tmp_path / "queue_data")
    assert {task["status"] for task in tasks} == {"completed"}
    assert sorted(task["result"]["before"] for task in tasks) == sorted(len(text) for text in texts.values())  # type: ignore[index]
