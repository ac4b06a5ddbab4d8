"""Benchmarks: ratios within one run, never a timed assertion. Each is started by hand with ``python -m``."""
