"""Comparisons of methods, pairs of networks and seeds, with tables and plots."""
