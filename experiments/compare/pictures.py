"""Plots of a comparison: accuracies of methods and seeds, and gains by pair."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lfcc_jax.training import pictures


def comparison(
    path: epath.Path, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], teacher: float, title: str = ""
) -> None:
    """Plots test accuracy over the epochs, and the last accuracy of each seed with the mean and its standard error.

    With more methods than colors, the first method and the best ones are colored and the others are gray.

    Args:
      path: Path of the PNG.
      runs: For each method, by the name to show, the rows of `metrics.jsonl` of each seed.
      teacher: Accuracy of the teacher, in [0, 1].
      title: Title of the figure.
    """
    accuracies = {m: 100 * np.stack([pictures.series(rows, "test/accuracy")[1] for rows in runs[m]]) for m in runs}
    epochs = pictures.series(next(iter(runs.values()))[0], "test/accuracy")[0]
    by_end = sorted(accuracies, key=lambda m: -accuracies[m][:, -1].mean())
    first = next(iter(runs))
    chosen = (
        list(runs)
        if len(runs) <= len(pictures.COLORS)
        else [first, *(m for m in by_end if m != first)][: len(pictures.COLORS) - 2]
    )
    colors = dict(zip(chosen, pictures.COLORS, strict=False))
    figure, (left, right) = pictures.axes(1, 2, (10, max(4, 0.3 * len(runs))))
    for position, method in enumerate(by_end):
        accuracy, color = accuracies[method], colors.get(method, "0.6")
        label = method if method in colors else None
        left.plot(epochs, accuracy.mean(axis=0), color=color, marker=".", label=label, zorder=2 if label else 1)
        ends = accuracy[:, -1]
        right.plot(ends, np.full(len(ends), position), "o", color=color, alpha=0.35, markeredgewidth=0)
        right.errorbar(
            ends.mean(),
            position,
            xerr=_standard_error(ends),
            fmt="D",
            color=color,
            capsize=4,
            markersize=6,
            elinewidth=2,
        )
    left.axhline(100 * teacher, color="black", linestyle="--", linewidth=1, label="teacher")
    right.axvline(100 * teacher, color="black", linestyle="--", linewidth=1)
    seeds = len(next(iter(runs.values())))
    left.set(title=f"Mean over {seeds} seed{'s' if seeds > 1 else ''}", xlabel="epoch", ylabel="test accuracy, %")
    # Leave out the accuracy before training, which would squeeze the rest.
    lowest = min(accuracy[:, 1:].mean(axis=0).min() for accuracy in accuracies.values())
    left.set_ylim(lowest - 2, None)
    left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)
    right.set(title="Last epoch: seeds, mean ± standard error", xlabel="test accuracy, %")
    right.set(yticks=range(len(by_end)), yticklabels=by_end, ylim=(len(by_end) - 0.5, -0.5))
    figure.suptitle(title)
    pictures.save(figure, path)


def pairs(path: epath.Path, gains: Mapping[str, Mapping[str, float]], base: str, title: str = "") -> None:
    """Plots the gain of each method over another: each pair of networks, their mean and its standard error.

    Args:
      path: Path of the PNG.
      gains: For each pair of networks and each method, by the names to show, the gain in points.
      base: Name of the other method.
      title: Title of the figure.
    """
    by_method = {
        method: np.array([of_pair[method] for of_pair in gains.values()]) for method in next(iter(gains.values()))
    }
    by_gain = sorted(by_method, key=lambda method: -by_method[method].mean())
    figure, axis = pictures.axes(1, 1, (8, 2.2 + 0.34 * len(by_gain)))
    positions = np.arange(len(by_gain))
    means = [by_method[method].mean() for method in by_gain]
    axis.barh(positions, means, color="0.88", zorder=0)
    for i, (pair, color, marker) in enumerate(
        zip(gains, itertools.cycle(pictures.COLORS), itertools.cycle("os^Dv"), strict=False)
    ):
        axis.plot(
            [by_method[method][i] for method in by_gain],
            positions,
            marker,
            color=color,
            alpha=0.7,
            markersize=5,
            label=pair,
        )
    if len(gains) > 1:
        errors = [_standard_error(by_method[method]) for method in by_gain]
        axis.errorbar(
            means, positions, xerr=errors, fmt="|", color="black", capsize=4, label="mean ± standard error over pairs"
        )
    axis.axvline(0, color="black", linewidth=1)
    axis.set(yticks=positions, yticklabels=by_gain, ylim=(len(by_gain) - 0.5, -0.5), title=title)
    axis.set_xlabel(f"top-1 minus that of {base}, points")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    pictures.save(figure, path)


def _standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
