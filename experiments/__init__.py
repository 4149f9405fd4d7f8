"""Studies on the public modules of seedtune: grids of runs, kept as JSON lines, read as tables."""
