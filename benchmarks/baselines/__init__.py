"""Baselines: inner loops in plain PyTorch and other libraries, the denominators of every speed figure."""
