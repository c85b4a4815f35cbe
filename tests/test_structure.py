"""What holds of the whole project, whatever its parts do: layers, what is never called, and pages that agree with the code."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import jsonqueue
from jsonqueue import errors
from jsonqueue.config import Config
from jsonqueue.core.records import RecordName
from jsonqueue.core.transitions import mermaid

TOP = Path(__file__).resolve().parent.parent
SOURCE = TOP / "src" / "jsonqueue"
MODULES = sorted(SOURCE.rglob("*.py"))
PAGES = sorted({*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("examples/**/*.md"), *TOP.glob("queue_data/*.md")})
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
LINE_MAX = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
GROUPS = tomllib.loads((TOP / "pyproject.toml").read_text())["dependency-groups"]


def test_imports_go_downwards_only() -> None:
    """The layers hold, type-only and lazy imports counted, and the core imports nothing that acts."""
    run = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", run], cwd=TOP, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_goes_round_the_layers() -> None:
    """No module of ours imports the package's front door, through which everything could reach everything."""
    assert not [where for where, name in _all_imports() if name == "jsonqueue"]


def test_chance_comes_in_by_the_door() -> None:
    """Only the generator's class is ever imported from random: a call of random.random() could not be replayed from a seed."""
    found = {name for _, name in _all_imports() if name.partition(".")[0] == "random"}
    assert found <= {"random.Random", "random.SystemRandom"}


def test_the_core_is_handed_its_chance() -> None:
    """No random.Random is made in the core, or below it: they get one."""
    below = [path for path in MODULES if path.is_relative_to(SOURCE / "core") or path.name == "retry.py"]
    assert below
    assert not [where for path in below for where, call in _calls(path) if call in {"Random", "SystemRandom"}]


def test_only_the_clock_reads_the_time_for_brokers_and_storage() -> None:
    """What brokers, storage and core do can be replayed, because they are told the time."""
    told = (
        "core",
        "broker/publisher_broker.py",
        "broker/consumer_broker.py",
        "storage/codec.py",
        "storage/log.py",
        "storage/following.py",
        "storage/checkpoint.py",
    )
    paths = [path for path in MODULES if str(path.relative_to(SOURCE)).startswith(told)]
    assert len(paths) > len(told)
    assert not [where for path in paths for where, name in _imports(path) if name.partition(".")[0] in {"time", "datetime"}]


_NEVER_IMPORTED = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "code", "codeop", "pty"}
_NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
_OF_MULTIPROCESSING = {"multiprocessing.Pipe", "multiprocessing.connection", "multiprocessing.connection.Connection"}
"""What may be used of it: the rest pickles, or breaks when a process that uses it is killed."""


def test_nothing_is_unpickled_or_evaluated() -> None:
    """Bytes from a wire or a file become data, never objects or code."""
    assert not [(where, name) for where, name in _all_imports() if name.partition(".")[0] in _NEVER_IMPORTED]
    assert not [where for path in MODULES for where, call in _calls(path) if call in _NEVER_CALLED]


def test_of_multiprocessing_only_the_pipe_is_used() -> None:
    """No Queue, Manager, Lock or Process; and of a Connection neither recv() nor send(), which pickle."""
    used = {(where, name) for where, name in _all_imports() if name.partition(".")[0] == "multiprocessing"}
    assert not [found for found in used if found[1] not in _OF_MULTIPROCESSING]
    assert not [where for path in MODULES for where, call in _calls(path) if call.endswith(".recv()")]


def test_no_shell_runs_a_line_of_ours() -> None:
    """What a task holds can never become a word of a command line."""
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), f"{path}:{node.value.lineno}"


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    """Each runtime dependency is used, and nothing else is; what an extra brings is declared there."""
    declared = {_name(requirement) for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["plot"]]}
    outside = {name.partition(".")[0] for _, name in _all_imports()} - set(sys.stdlib_module_names) - {"jsonqueue", "__future__"}
    assert outside == declared


def test_only_the_command_line_loads_what_a_terminal_needs() -> None:
    """A worker or a broker does not pay for click and rich."""
    assert not [where for where, name in _all_imports() if name.partition(".")[0] in {"click", "rich"} and "/cli/" not in where]


def test_pip_and_uv_develop_with_the_same_tools() -> None:
    """The extra and the group are one list, written twice because each tool reads its own."""
    assert PROJECT["optional-dependencies"]["dev"] == GROUPS["dev"]


def test_constraints_pin_everything_and_name_no_address() -> None:
    """Every dependency has an exact version in constraints.txt; where it comes from is the machine's business."""
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"^[a-z0-9-]+==\S+( ; .+)?$", line) for line in lines)
    pinned = {line.partition("==")[0] for line in lines}
    assert {_name(requirement) for requirement in [*PROJECT["dependencies"], *GROUPS["dev"], "uv", "hatchling"]} <= pinned


def test_every_module_says_what_it_exports() -> None:
    """`__all__` is there, and each name in it."""
    for name, module in _imported_modules():
        if not name.endswith("__main__"):
            assert all(hasattr(module, exported) for exported in getattr(module, "__all__", ())), name
            assert hasattr(module, "__all__") or module.__file__.endswith("__init__.py"), name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [
        "BrokerManager",
        "Config",
        "Consumer",
        "ConsumerBroker",
        "Event",
        "EventOwner",
        "EventType",
        "Publisher",
        "PublisherBroker",
        "Task",
        "TaskHandle",
        "TaskIn",
        "TaskStatus",
        "WaitingQueue",
        *errors.__all__,
    ],
)
def test_the_names_users_hold_come_from_the_front_door(name: str) -> None:
    """`from jsonqueue import …` is all that a user needs."""
    assert name in jsonqueue.__all__
    assert hasattr(jsonqueue, name)


def test_functions_fit_on_a_screen_and_files_in_an_evening() -> None:
    """No function over 60 lines, half of them under 10; no file over 500."""
    long = {str(path.relative_to(TOP)): lines for path in MODULES if (lines := path.read_text().count("\n")) > 500}
    assert not long
    sizes = {}
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{path}:{node.lineno} {node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    assert not {where: size for where, size in sizes.items() if size > 60}
    assert statistics.median(sizes.values()) < 10


@pytest.mark.parametrize(
    "name",
    [
        "scripts/run",
        "scripts/test",
        "scripts/faults",
        "scripts/planted-bugs",
        "scripts/mutation-test",
        "scripts/lock",
        "scripts/lib/environment.sh",
        ".ci/run",
    ],
)
def test_scripts_are_whole_and_can_be_run(name: str) -> None:
    """Bash can read them, and whoever clones the project can start them."""
    subprocess.run(["bash", "-n", TOP / name], check=True, timeout=50)
    assert name.endswith(".sh") or os.access(TOP / name, os.X_OK)


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_is_documented() -> None:
    """docs/settings.md is what scripts/generate_pages.py makes of the docstrings now, and has a row with words for each setting."""
    page = (TOP / "docs" / "settings.md").read_text()
    assert page == _generator().settings_page(), "run: .venv/bin/python scripts/generate_pages.py"
    for name in Config.__struct_fields__:
        assert re.search(rf"^\| `{name}` \| `.+`.* \| \S.+ \|$", page, re.MULTILINE), name


def test_every_diagram_of_a_tasks_life_is_the_tables() -> None:
    """The pages draw what replay enforces."""
    drawn = [found for page in PAGES for found in re.findall(r"```mermaid\n(stateDiagram-v2.*?)\n```", page.read_text(), re.DOTALL)]
    assert drawn
    assert set(drawn) == {mermaid()}, "run: .venv/bin/python scripts/generate_pages.py"


def test_every_record_is_explained() -> None:
    """docs/lifecycle.md has a row for each name that a reader of the logs meets."""
    rows = set(re.findall(r"^\| `(\w+)` \|", (TOP / "docs" / "lifecycle.md").read_text(), re.MULTILINE))
    assert rows == {"published", *RecordName}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link in a page names a file that is there."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_decision_is_in_the_list() -> None:
    """docs/decisions/README.md names each page beside it."""
    folder = TOP / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\S+?\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}


# ── reading source files ─────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    """(where, what) of each import: `import a.b` gives a.b, `from a import b` gives a.b; those inside functions too."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((f"{path}:{node.lineno}", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # From the package itself a submodule may be imported, which is no import of its front door.
            submodules = {alias.name for alias in node.names if (SOURCE / alias.name).is_dir() or (SOURCE / f"{alias.name}.py").is_file()}
            for alias in node.names:
                whole = node.module == "jsonqueue" and alias.name not in submodules
                yield f"{path}:{node.lineno}", "jsonqueue" if whole else f"{node.module}.{alias.name}"


def _all_imports() -> Iterator[tuple[str, str]]:
    for path in MODULES:
        yield from _imports(path)


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    """(where, what) of each call: its dotted name; with "()" behind it for a method called without arguments."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            bare = "()" if isinstance(node.func, ast.Attribute) and node.func.attr == "recv" and not node.args else ""
            yield f"{path}:{node.lineno}", ast.unparse(node.func) + bare


def _imported_modules() -> Iterator[tuple[str, ModuleType]]:
    for path in MODULES:
        if path.name != "__main__.py":
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
            yield name, import_module(name)


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9-]", requirement, maxsplit=1)[0]


def _generator() -> ModuleType:
    spec = spec_from_file_location("generate_pages", TOP / "scripts" / "generate_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_prose_fits_the_line(page: Path) -> None:
    """As code does, so that a changed word is a changed line and not a changed paragraph. Tables and what is fenced are as they must be."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    assert not [line for line in prose if len(line) > LINE_MAX and not line.lstrip().startswith("|")]
