"""``python -m jsonqueue.main`` is ``jsonqueue``: without a command it runs the demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonqueue.cli.app import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status."""
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
