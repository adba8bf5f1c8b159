"""Compilation for NVIDIA GPUs without hardware."""
