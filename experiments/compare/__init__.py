"""Comparisons of methods, pairs of networks and seeds, and their tables and pictures."""
