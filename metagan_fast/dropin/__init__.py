"""Stand-ins for other projects' trainers: the same names, found under `metagan_fast.dropin.<project>`."""
