"""Mutation testing: of the small changes that a machine can think of, how many do the tests of a layer notice? ``scripts/mutation-test``.

mutmut makes the mutants and knows which tests reach which function. Here a sample of them is drawn by seed, run in a copy of the tree,
counted, and each survivor is shown as the change that it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
NOTICED = ("killed", "timeout", "segfault", "suspicious", "caught by type check")
_SETTINGS = """\
[mutmut]
source_paths = src
only_mutate = src/jsonqueue/{layer}/*
also_copy = src
pytest_add_cli_args =
    -p
    no:cacheprovider
pytest_add_cli_args_test_selection = tests/{layer}
use_git_change_detection = false
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutation-test")
    parser.add_argument("--layer", choices=("core", "storage"), default="core")
    parser.add_argument("--sample", type=int, default=150, metavar="N", help="how many mutants; 0: all, which takes hours")
    parser.add_argument("--seed", type=int, default=1, help="which of them")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jsonqueue-mutants-") as folder:
        tree = _copy(Path(folder), given.layer)
        names = _drawn(_generated(tree), given.sample, given.seed)
        print(f"{len(names)} mutants of {given.layer}, seed {given.seed}", flush=True)
        said = _mutmut(tree, "run", "--max-children", str(given.jobs), *names)
        return _report(tree, names, said)


def _copy(tree: Path, layer: str) -> Path:
    for name in ("src", "tests"):
        shutil.copytree(TOP / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(TOP / name, tree)
    (tree / "setup.cfg").write_text(_SETTINGS.format(layer=layer))
    return tree


def _mutmut(tree: Path, *arguments: str) -> str:
    """What it says. Its own exit status tells only whether it was interrupted."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "mutants" / "src")}  # for processes that tests start
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _generated(tree: Path) -> list[str]:
    """The names of all mutants. mutmut makes them before it finds that none has this name."""
    said = _mutmut(tree, "run", "none of them")
    metas = sorted((tree / "mutants").rglob("*.py.meta"))
    names = [name for meta in metas for name in json.loads(meta.read_text())["exit_code_by_key"]]
    if not names:
        sys.exit(f"mutmut made no mutants:\n{said[-2000:]}")
    return names


def _drawn(names: list[str], sample: int, seed: int) -> list[str]:
    return sorted(random.Random(seed).sample(names, min(sample or len(names), len(names))))


def _report(tree: Path, names: list[str], said: str) -> int:
    lines = (line.strip().rpartition(": ") for line in _mutmut(tree, "results", "--all", "true").splitlines())
    found = {name: state for name, _, state in lines if name in set(names)}
    counted = Counter(found.values())
    if counted["not checked"] or len(found) < len(names):
        print(f"mutmut did not get to the end:\n{said[-4000:]}")
        return 1
    for name in (name for name, state in found.items() if state not in NOTICED):
        print(f"\n── {found[name]}: {name}\n{_mutmut(tree, 'show', name).strip()}")
    noticed = sum(counted[state] for state in NOTICED)
    print("\n" + ", ".join(f"{number} {state}" for state, number in counted.most_common()))
    print(f"{noticed} of {len(names)} noticed: {100 * noticed / len(names):.0f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
