"""Plots of filters, augmentations and features."""
