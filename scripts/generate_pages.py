#!/usr/bin/env python3
"""Write the pages that the code knows best: docs/settings.md from Config's docstrings, the diagram in docs/lifecycle.md from the table,
docs/cli.md from the commands.

    .venv/bin/python scripts/generate_pages.py

tests/test_structure.py fails when a page and the code differ.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from jsonqueue.cli.app import COMMANDS, cli
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


_COMMAND_LINE = """\
# The command line

<!-- Written by scripts/generate_pages.py from the commands themselves. Change them there. -->

`jsonqueue COMMAND --help` says the same. Without a command the demo runs; options without a command are the demo's. `python -m jsonqueue`
and `python -m jsonqueue.main` are the same program.

Two options are understood everywhere, before and behind the command's name: `--queue DIR` names the queue folder (else
`$JSONQUEUE_DIR`, else `queue_data`), and `--json` prints JSON for a program to read, one value a line. An option that would
count for nothing beside others is refused; so is `--queue` for `bench` and `simulate`, whose queues are their own.

Results go to standard output, everything else to standard error. What comes out of a task (payload, result, error, the name of a
consumer) is printed with its control characters written as escapes, so that it can do nothing to a terminal. On a terminal there are
colours (with `NO_COLOR` set only bold and dim), live progress, and tables that leave out the columns there is no room for; piped output is
plain and never cut to a width.

`status`, `list`, `show`, `result`, `dead list`, `dead show` and `verify` read the files alone: they work whether or not brokers run, and
change nothing. `publish` works without brokers too; the task runs when brokers start. `work` waits for brokers. `cancel`, `dead replay`,
`result --wait` and `stop` need running ones.

## Exit statuses

| status | meaning |
|---|---|
| 0 | Done. |
| 1 | The answer is no: the task is dead or cancelled, `verify` found damage, an id could not be changed, the demo's totals differ. |
| 2 | Wrong usage: an unknown command or option. |
| 64 | A handler that cannot be run: not found, not importable, not executable, or no function. |
| 65 | Bad data: a payload that is no JSON or too large, a task that the queue refuses, damaged files. |
| 66 | No such task, or no queue in this folder. |
| 69 | No broker is running where one is needed. |
| 70 | A bug in jsonqueue; `JSONQUEUE_DEBUG=1` shows where. |
| 72 | A log was removed, moved or replaced while it was written to, again and again. |
| 74 | The disk: full, failing, or files that cannot be used; or standard output cannot be written to (what was done stands, and is said). |
| 75 | Not now: another manager serves, stops or does not answer, no answer came in time, the task has not ended, no thread is to be had. |
| 76 | The other end of a connection spoke nonsense. |
| 77 | A folder that must not or cannot be used: not yours, a file, without the permissions, writable by others, on a network filesystem. |
| 78 | A setting that does not exist or is out of range, or files of a newer format. |
| 129 | The terminal was closed (SIGHUP). (`serve` and `work` drain, and exit with 0.) |
| 130 | Ctrl-C. (`serve` and `work` drain, and exit with 0.) |
| 141 | The reader of the output went away (`jsonqueue list \\| head`). |
| 143 | SIGTERM. (`serve` and `work` drain, and exit with 0.) |

An error is one sentence on standard error, and a hint.

## Shell completion

```sh
jsonqueue completion bash > ~/.local/share/bash-completion/completions/jsonqueue
jsonqueue completion zsh > ~/.zfunc/_jsonqueue
jsonqueue completion fish > ~/.config/fish/completions/jsonqueue.fish
```

## Commands
"""


def cli_page() -> str:
    """docs/cli.md."""
    parts = [_COMMAND_LINE]
    with click.Context(cli, info_name="jsonqueue") as top:
        for name in COMMANDS:
            command = cli.get_command(top, name)
            assert command is not None
            parts += _command(command, f"jsonqueue {name}", "###")
    return "\n".join(parts) + "\n"


def _command(command: click.Command, called: str, heading: str) -> Iterator[str]:
    places = [parameter.make_metavar(click.Context(command)) for parameter in command.params if isinstance(parameter, click.Argument)]
    group = " COMMAND" if isinstance(command, click.Group) else ""
    yield f"{heading} `{' '.join([called, *places])}{group}`\n"
    yield from _prose(command.help or "")
    rows = [row for parameter in command.params if (row := _option(parameter))]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows, ""])
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from _command(member, f"{called} {name}", heading + "#")


def _prose(text: str) -> Iterator[str]:
    """A help text in Markdown: what click leaves as it is becomes code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.split("\n")
        if lines[0] == "\b":
            # Lines to type, or a table laid out by hand.
            language = "sh" if lines[1].lstrip().startswith(("jsonqueue", "printf", "cat ")) else "text"
            yield "\n".join([f"```{language}", *lines[1:], "```"]) + "\n"
        else:
            yield paragraph.replace("<", "\\<") + "\n"


def _option(parameter: click.Parameter) -> str:
    if not isinstance(parameter, click.Option) or parameter.name in {"queue", "json"}:
        return ""
    told = [parameter.help or ""]
    if isinstance(parameter.type, click.Choice):
        told.append(f"One of: {', '.join(map(str, parameter.type.choices))}.")
    if parameter.show_default:
        default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
        told.append(f"Default: {int(default) if isinstance(default, float) and default.is_integer() else default}.")
    value = "" if parameter.is_flag else " " + (parameter.metavar or parameter.type.name.upper().removesuffix(" RANGE"))
    return f"| `{', '.join(parameter.opts)}{value}` | {' '.join(told).replace('  [', ' [')} |"


def main() -> None:
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "cli.md").write_text(cli_page())
    lifecycle = DOCS / "lifecycle.md"
    lifecycle.write_text(lifecycle_page(lifecycle.read_text()))


if __name__ == "__main__":
    main()
