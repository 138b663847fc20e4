"""Entry point of `python -m metagan_fast`, the command `metagan-fast`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
