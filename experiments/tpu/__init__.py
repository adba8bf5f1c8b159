"""Compilation for TPU slices without hardware, and a launcher."""
