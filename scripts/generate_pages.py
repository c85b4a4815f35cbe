#!/usr/bin/env python3
"""Write the pages that the code knows best: docs/settings.md from Config's docstrings, the diagram in docs/lifecycle.md from the table.

    .venv/bin/python scripts/generate_pages.py

tests/test_structure.py fails when a page and the code differ.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import msgspec

from jsonqueue.config import CONFIG_FILE, Config
from jsonqueue.core.transitions import mermaid

DOCS = Path(__file__).resolve().parent.parent / "docs"

_INTRODUCTION = f"""\
# Settings

<!-- Written by scripts/generate_pages.py from the docstrings of jsonqueue.config.Config. Change it there. -->

The settings of a queue live with it, in `{CONFIG_FILE}` in its folder: the brokers, the publishers and the consumers share them, from
whatever process they come. A running queue reads them when its brokers start. For one run they can be laid over:
`jsonqueue serve --set lease_ms=60000`, or `BrokerManager("queue_data", Config(lease_ms=60_000))`. Every setting carries its unit in its
name. A setting that does not exist, or a value out of its range, is an error that names it; nothing is ignored.

```toml
# queue_data/{CONFIG_FILE}
attempts_max = 5
lease_ms = 60_000
retry = {{ kind = "linear", step_ms = 5_000 }}
```
"""


def settings_page() -> str:
    """docs/settings.md."""
    told = _docstrings()
    defaults = Config()
    rows = [f"| `{name}` | {_shown(name, getattr(defaults, name))} | {told[name]} |" for name in Config.__struct_fields__]
    return "\n".join([_INTRODUCTION, "| setting | default | meaning |", "|---|---|---|", *rows, ""])


def _docstrings() -> dict[str, str]:
    """What stands under each field of Config, in Markdown."""
    body = ast.parse(inspect.getsource(Config)).body[0]
    assert isinstance(body, ast.ClassDef)
    told = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str() as words)):
                    told[field.target.id] = re.sub(r"\s+", " ", words).strip().replace("``", "`").replace("|", "\\|")
    return told


def _shown(name: str, value: object) -> str:
    if isinstance(value, msgspec.Struct):
        members = {key: getattr(value, key) for key in value.__struct_fields__}
        kind = value.__struct_config__.tag
        return "`{ kind = " + json.dumps(kind) + "".join(f", {key} = {_toml(member)}" for key, member in members.items()) + " }`"
    spoken = _spoken(name, value) if isinstance(value, int) and not isinstance(value, bool) else ""
    return f"`{_toml(value)}`" + (f" ({spoken})" if spoken else "")


def _toml(value: object) -> str:
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _spoken(name: str, value: int) -> str:
    """The default in a unit that a person thinks in."""
    if name.endswith("_ms"):
        hours = value // 3_600_000
        return f"{hours // 24} days" if hours >= 48 else f"{hours} h" if hours else f"{value / 1000:g} s"
    if name.endswith("_bytes"):
        return f"{value // 1024**2} MiB"
    return ""


def lifecycle_page(page: str) -> str:
    """``page`` with its diagram replaced by the one that the table of transitions draws."""
    return re.sub(r"```mermaid\nstateDiagram-v2\n.*?```", lambda _: f"```mermaid\n{mermaid()}\n```", page, flags=re.DOTALL)


def main() -> None:
    (DOCS / "settings.md").write_text(settings_page())
    lifecycle = DOCS / "lifecycle.md"
    lifecycle.write_text(lifecycle_page(lifecycle.read_text()))


if __name__ == "__main__":
    main()
