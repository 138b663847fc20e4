"""Per-task layers: one launch a pass for weights that differ from task to task, and their fusion with activations."""
