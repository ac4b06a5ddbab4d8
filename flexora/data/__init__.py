"""Benchmarks: rows, questions, tokens, batches."""
