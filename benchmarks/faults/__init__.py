"""`python -m metagan_fast.benchmarks.faults`: the table of faults against outcomes."""
