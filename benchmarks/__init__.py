"""One command a figure: `python -m benchmarks.NAME [--quick] [--json FILE]` prints a table and writes JSON."""
