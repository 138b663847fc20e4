"""Per-task layers, whose weights differ from task to task: one kernel launch a pass, fused with the activation."""
