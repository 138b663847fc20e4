"""Training runs: configuration, presets, the outer loop, the run folder and its image grids."""
