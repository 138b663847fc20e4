"""`python -m metagan_fast.benchmarks`: the same as `metagan-fast bench`."""

import sys

from metagan_fast.benchmarks.command import main

sys.exit(main())
