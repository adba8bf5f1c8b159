"""Benchmarks that run on the accelerator at hand."""
