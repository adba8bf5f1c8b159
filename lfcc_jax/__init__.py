"""Distil any vision teacher into any vision student in JAX."""
