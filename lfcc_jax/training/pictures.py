"""Pictures of a run: its learning curves, and what frequencies the features of student and teacher contain."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from etils import epath

from lfcc_jax import storage

# Okabe and Ito's colours, which everybody can tell apart.
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


def comparison(path: epath.Path, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], teacher: float) -> None:
    """Draws the students' accuracies over the epochs, and where each seed ended.

    Of more methods than there are colors, the first one and those that ended best are colored, the others grey.

    Args:
      path: of the PNG.
      runs: for each method, the lines of `metrics.jsonl` of each seed.
      teacher: accuracy of the teacher, in [0, 1].
    """
    figure, (left, right) = _axes(1, 2, (10, max(4, 0.3 * len(runs))))
    epochs = _series(next(iter(runs.values()))[0], "test/accuracy")[0]
    accuracies = {m: 100 * np.stack([_series(rows, "test/accuracy")[1] for rows in runs[m]]) for m in runs}
    by_end = sorted(accuracies, key=lambda m: -accuracies[m][:, -1].mean())
    first = next(iter(runs))
    chosen = list(runs) if len(runs) <= len(COLORS) else [first, *(m for m in by_end if m != first)][: len(COLORS) - 2]
    colors = dict(zip(chosen, COLORS, strict=False))
    for i, (method, accuracy) in enumerate(accuracies.items()):
        color = colors.get(method, "0.7")
        label = method if method in colors else None
        left.plot(epochs, accuracy.mean(axis=0), color=color, marker=".", label=label, zorder=2 if label else 1)
        if label:
            low, high = accuracy.min(axis=0), accuracy.max(axis=0)
            left.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
        right.plot(accuracy[:, -1], np.full(len(accuracy), i), "o", color=color, alpha=0.6)
        right.plot(accuracy[:, -1].mean(), i, "|", color=color, markersize=24 if len(runs) < 8 else 12, mew=2)
    for axis, line in ((left, left.axhline), (right, right.axvline)):
        line(100 * teacher, color="black", linestyle="--", linewidth=1, label="teacher")
        axis.set_title("Test accuracy over the epochs" if axis is left else "At the last epoch: seeds and their mean")
    lowest = min(100 * _series(rows, "test/accuracy")[1][1:].min() for seeds in runs.values() for rows in seeds)
    left.set(xlabel="epoch", ylabel="top-1, %", ylim=(lowest - 2, None))
    left.legend(frameon=False, loc="lower right")
    right.set(xlabel="top-1, %", yticks=range(len(runs)), yticklabels=list(runs), ylim=(len(runs) - 0.5, -0.5))
    _save(figure, path)


def pairs(path: epath.Path, accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws by how much each method is better than the first one, for each pair and on average.

    Args:
      path: of the PNG.
      accuracies: for each pair of networks and each method, the accuracies of its seeds in percent.
    """
    methods = list(next(iter(accuracies.values())))
    figure, axis = _axes(1, 1, (8, 1.8 + 0.34 * len(methods)))
    gains = np.array([
        [np.mean(accuracies[pair][method]) - np.mean(accuracies[pair][methods[0]]) for method in methods]
        for pair in accuracies
    ])  # fmt: skip
    places = np.arange(len(methods))
    for pair, gain, color, marker in zip(
        accuracies, gains, itertools.cycle(COLORS), itertools.cycle("os^Dv"), strict=False
    ):
        axis.plot(gain, places, marker, color=color, alpha=0.8, label=pair)
    axis.barh(places, gains.mean(axis=0), color="0.85", zorder=0, label="mean")
    axis.set(yticks=places, yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
    axis.use_sticky_edges = False  # of the bars
    axis.set_xlabel(f"points of top-1 over {methods[0]}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


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
