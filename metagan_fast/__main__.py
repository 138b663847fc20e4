"""`python -m metagan_fast` is `metagan-fast`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
