"""Pictures of a run: its learning curves, and what frequencies the features of student and teacher contain."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from etils import epath

from lfcc_jax import storage

# The Okabe-Ito palette, which is safe for color-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def learning_curves(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws losses and accuracies over the epochs.

    Args:
      path: of the PNG.
      rows: lines of `metrics.jsonl`: keys `train/...` and `test/...`, with `epoch`.
    """
    figure, (left, right) = _axes(1, 2, (10, 4.4))
    terms = sorted({key for row in rows for key in row if key.startswith("train/")} - set(_NOT_LOSSES))
    if len(terms) == 2:  # one method, and the sum of it
        terms.remove("train/loss")
    for i, key in enumerate(terms):
        style = {"color": "black", "linewidth": 2} if key == "train/loss" else {"color": COLORS[i % len(COLORS)]}
        left.plot(
            *_series(rows, key),
            marker="." if len(rows) < 40 else "",
            label=key.removeprefix("train/").replace("_", " "),
            **style,
        )
    values = [row[key] for row in rows for key in terms if row.get(key) is not None]
    lowest, highest = min(values, default=0), max(values, default=0)
    left.set(title="Training loss", xlabel="epoch", ylabel="nats", yscale="log" if highest > 10 * lowest else "linear")
    if terms:
        left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)

    right.plot(*_series(rows, "train/accuracy"), color=COLORS[0], alpha=0.5, label="student, train")
    right.plot(*_series(rows, "test/accuracy"), color=COLORS[0], marker=".", label="student, test")
    taught = _series(rows, "test/teacher_accuracy")[1]
    if len(taught):
        right.axhline(taught[-1], color=COLORS[1], linestyle="--", label="teacher, test")
        right.plot(*_series(rows, "test/agreement"), color=COLORS[2], marker=".", label="agreement of both")
    right.set(title="Accuracy", xlabel="epoch", ylabel="fraction of images")
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2)
    _save(figure, path)


def spectra(path: epath.Path, networks: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """Draws the radial power spectra of feature maps, a panel a stage.

    Args:
      path: of the PNG.
      networks: for each network, by a name for the legend, each stage's `cycles_per_image` and `power`.
    """
    stages = sorted({stage for features in networks.values() for stage in features})
    figure, axes = _axes(1, len(stages), (3.2 * len(stages), 3.8), sharey=True)
    for axis, stage in zip(np.ravel(axes), stages, strict=True):
        colors = itertools.cycle(COLORS)
        for name, features in networks.items():
            is_teacher = name.startswith("teacher")
            style = {"color": "black", "linestyle": "--"} if is_teacher else {"color": next(colors)}
            if stage in features:
                power = np.asarray(features[stage]["power"])
                axis.plot(features[stage]["cycles_per_image"], power / power.sum(), marker=".", label=name, **style)
        axis.set(title=stage, xlabel="cycles per image", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    np.ravel(axes)[0].set_ylabel("mean power of a frequency, relative")
    handles, labels = np.ravel(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def comparison(
    path: epath.Path, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], teacher: float, title: str = ""
) -> None:
    """Draws test accuracy over the epochs, and the last accuracy of each seed with the mean and its standard error.

    With more methods than colors, the first method and the best ones are colored and the others are gray.

    Args:
      path: Path of the PNG.
      runs: For each method, by the name to show, the rows of `metrics.jsonl` of each seed.
      teacher: Accuracy of the teacher, in [0, 1].
      title: Title of the figure.
    """
    accuracies = {m: 100 * np.stack([_series(rows, "test/accuracy")[1] for rows in runs[m]]) for m in runs}
    epochs = _series(next(iter(runs.values()))[0], "test/accuracy")[0]
    by_end = sorted(accuracies, key=lambda m: -accuracies[m][:, -1].mean())
    first = next(iter(runs))
    chosen = list(runs) if len(runs) <= len(COLORS) else [first, *(m for m in by_end if m != first)][: len(COLORS) - 2]
    colors = dict(zip(chosen, COLORS, strict=False))
    figure, (left, right) = _axes(1, 2, (10, max(4, 0.3 * len(runs))))
    for place, method in enumerate(by_end):
        accuracy, color = accuracies[method], colors.get(method, "0.6")
        label = method if method in colors else None
        left.plot(epochs, accuracy.mean(axis=0), color=color, marker=".", label=label, zorder=2 if label else 1)
        ends = accuracy[:, -1]
        right.plot(ends, np.full(len(ends), place), "o", color=color, alpha=0.35, markeredgewidth=0)
        right.errorbar(
            ends.mean(), place, xerr=_standard_error(ends), fmt="D", color=color, capsize=4, markersize=6, elinewidth=2
        )
    left.axhline(100 * teacher, color="black", linestyle="--", linewidth=1, label="teacher")
    right.axvline(100 * teacher, color="black", linestyle="--", linewidth=1)
    seeds = len(next(iter(runs.values())))
    left.set(title=f"Mean over {seeds} seed{'s' if seeds > 1 else ''}", xlabel="epoch", ylabel="test accuracy, %")
    # Before training all methods are at chance, which would leave the end no room.
    lowest = min(accuracy[:, 1:].mean(axis=0).min() for accuracy in accuracies.values())
    left.set_ylim(lowest - 2, None)
    left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)
    right.set(title="Last epoch: seeds, mean ± standard error", xlabel="test accuracy, %")
    right.set(yticks=range(len(by_end)), yticklabels=by_end, ylim=(len(by_end) - 0.5, -0.5))
    figure.suptitle(title)
    _save(figure, path)


def pairs(path: epath.Path, accuracies: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> None:
    """Draws the gain of each method over the first one: each pair of networks, their mean and its standard error.

    Args:
      path: Path of the PNG.
      accuracies: For each pair of networks and each method, by the names to show, the accuracies of its seeds in
        percent.
      title: Title of the figure.
    """
    first, *methods = next(iter(accuracies.values()))
    gains = {
        method: np.array([np.mean(found[method]) - np.mean(found[first]) for found in accuracies.values()])
        for method in methods
    }
    by_gain = sorted(gains, key=lambda method: -gains[method].mean())
    figure, axis = _axes(1, 1, (8, 2.2 + 0.34 * len(by_gain)))
    places = np.arange(len(by_gain))
    means = [gains[method].mean() for method in by_gain]
    axis.barh(places, means, color="0.88", zorder=0)
    for i, (pair, color, marker) in enumerate(
        zip(accuracies, itertools.cycle(COLORS), itertools.cycle("os^Dv"), strict=False)
    ):
        axis.plot(
            [gains[method][i] for method in by_gain], places, marker, color=color, alpha=0.7, markersize=5, label=pair
        )
    if len(accuracies) > 1:
        errors = [_standard_error(gains[method]) for method in by_gain]
        axis.errorbar(
            means, places, xerr=errors, fmt="|", color="black", capsize=4, label="mean ± standard error over pairs"
        )
    axis.axvline(0, color="black", linewidth=1)
    axis.set(yticks=places, yticklabels=by_gain, ylim=(len(by_gain) - 0.5, -0.5), title=title)
    axis.set_xlabel(f"top-1 minus that of {first}, points")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def _standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


_NOT_LOSSES = ("train/accuracy", "train/grad_norm", "train/learning_rate", "train/images_per_second")


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and "epoch" in row]
    return tuple(np.asarray(points, float).reshape(-1, 2).T)


def _axes(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[matplotlib.figure.Figure, Any]:
    # A Figure of its own needs no display, and leaves the user's matplotlib backend as it is.
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **kwargs)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure: matplotlib.figure.Figure, path: epath.Path) -> None:
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format="png")
    storage.write_bytes(path, file.getvalue())
