"""docs/cli.md and the commands agree."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click

from jsonqueue import errors
from jsonqueue.cli import app, changing, reading, serving, showing
from jsonqueue.cli.demo import performance
from jsonqueue.client.limits import Limits
from jsonqueue.config import CONFIG_FILE
from jsonqueue.storage.queue_file import QUEUE
from jsonqueue.storage.reserve import RESERVE
from jsonqueue.task import TaskIn

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    """Every command, every option, in their own words."""
    spec = spec_from_file_location("generate_pages", TOP / "scripts" / "generate_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert PAGE.read_text() == module.cli_page(), "run: .venv/bin/python scripts/generate_pages.py"


def test_every_exit_status_is_explained() -> None:
    """Those of all errors, and those that a run may end with otherwise."""
    explained = set(map(int, re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)))
    used = {2, 70, 74, 129, 130, 141, 143, 0}
    for module in (errors, reading, showing, changing, serving, performance):
        kinds = [found for found in vars(module).values() if isinstance(found, type) and issubclass(found, errors.JsonQueueError)]
        assert kinds
        used |= {kind.exit_status for kind in kinds}
    assert used == explained
    assert all(f"{status} " in str(app.__doc__) for status in used - {64, 76, 143})


def test_whatever_a_queue_folder_may_hold_is_explained() -> None:
    """In the folder's own README, and in the list of files of the format."""
    for page in ("queue_data/README.md", "docs/format.md"):
        listed = (TOP / page).read_text()
        for name in (
            QUEUE,
            RESERVE,
            "jsonqueue.sock",
            CONFIG_FILE,
            ".draft",
            "damaged-1",
            "previous/",
            "archive/",
            ".lock",
            "published-",
            "progress-",
        ):
            assert name in listed, (page, name)


def test_the_fields_of_a_task_line_are_listed() -> None:
    """And the options that take a process of their own are named, not counted."""
    told = {
        name: " ".join(str(found.help).split())
        for name in ("publish", "work")
        if (found := app.cli.get_command(click.Context(app.cli), name))
    }
    fields = told["publish"].partition("With --tasks")[2]
    assert all(field in fields for field in TaskIn.__struct_fields__)
    limits = told["work"].partition("put the handler into processes of its own")[0].rpartition("starts one).")[2]
    assert all(f"--{name.removesuffix('_bytes').removesuffix('_s').replace('_', '-')}" in limits for name in Limits.__struct_fields__)
