"""`python -m metagan_fast.benchmarks`: `metagan-fast bench`; with `memory`, predicted beside measured memory."""

import sys

from metagan_fast.benchmarks import memory_plan
from metagan_fast.benchmarks.command import main

sys.exit(memory_plan.main(sys.argv[2:]) if sys.argv[1:2] == ["memory"] else main())
