"""Plots frequency responses and weights of the filters into docs/filters.png: `python -m experiments.plot.filters`."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lfcc_jax import filters

CUTOFF = 1 / 8
SIZE, GRID = 14, 4  # Nyquist frequency 1/7
# The colorblind-safe palette, with dashes for grayscale. Ideal and dct have the same response, so one is a broad line
# under the other.
STYLES = {
    "ideal": {"color": "#C4C4C4", "linewidth": 4.5, "markersize": 12},
    "box": {"color": "#0072B2"},
    "gaussian": {"color": "#D55E00", "linestyle": "--"},
    "dct": {"color": "#000000", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "butterworth": {"color": "#CC79A7", "linestyle": (0, (1, 1)), "linewidth": 2},
}
PATH = Path(__file__).parents[2] / "docs" / "filters.png"


def main() -> None:
    """Writes docs/filters.png."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    figure, (response, weights) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    frequencies = np.linspace(0, 0.5, 501)
    for kind, style in STYLES.items():
        amplitude = filters.frequency_response(kind, frequencies, CUTOFF)
        response.plot(frequencies, amplitude, label=kind, **style)
        row = filters.operator(kind, SIZE, GRID)[1]
        weights.plot(np.arange(SIZE), row, marker=".", label=kind, **style)
    response.axvline(CUTOFF, color="0.7", linewidth=0.8, zorder=0)
    response.annotate("cutoff 1/8", (CUTOFF, 1.02), xytext=(4, 0), textcoords="offset points", color="0.4")
    response.set(xlabel="frequency, cycles per sample", ylabel="amplitude response", ylim=(-0.3, 1.1), xlim=(0, 0.5))
    weights.set(xlabel=f"sample, of {SIZE}", ylabel=f"weight in the second of {GRID} outputs")
    for axes in (response, weights):
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    response.legend(frameon=False)
    PATH.parent.mkdir(exist_ok=True)
    figure.savefig(PATH, dpi=110)


if __name__ == "__main__":
    main()
