"""Probes: layers scored by what a look at model and rows says."""
