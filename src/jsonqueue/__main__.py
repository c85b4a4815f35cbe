"""``python -m jsonqueue`` is ``jsonqueue``."""

from __future__ import annotations

import sys

from jsonqueue.main import main

if __name__ == "__main__":
    sys.exit(main())
