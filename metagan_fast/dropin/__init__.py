"""Drop-in replacements for other projects: the same public names under `metagan_fast.dropin.<project>`."""
