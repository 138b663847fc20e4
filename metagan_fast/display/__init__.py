"""Image grids, markup and progress bars: how results look in files, pages, notebooks and terminals."""
