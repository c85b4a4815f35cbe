"""docs/cli.md and the commands agree."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from jsonqueue import errors
from jsonqueue.cli import app, changing, reading, serving, showing
from jsonqueue.cli.demo import performance

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
    used = {2, 70, 74, 130, 141, 143, 0}
    for module in (errors, reading, showing, changing, serving, performance):
        kinds = [found for found in vars(module).values() if isinstance(found, type) and issubclass(found, errors.JsonQueueError)]
        assert kinds
        used |= {kind.exit_status for kind in kinds}
    assert used == explained
    assert all(f"{status} " in str(app.__doc__) for status in used - {64, 76, 143})
