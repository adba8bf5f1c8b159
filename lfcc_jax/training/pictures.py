"""Figures of a run: learning curves, and spectra of the feature maps of student and teacher."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from etils import epath

from lfcc_jax import storage

# The Okabe-Ito colorblind-safe palette.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def learning_curves(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws losses, before they are weighted, and accuracies or, without labels, similarities to the teacher, by epoch.

    Args:
      path: Path of the PNG.
      rows: Rows of `metrics.jsonl`, with `epoch` and keys `train/...` and `test/...`.
    """
    figure, (left, right) = axes(1, 2, (10, 4.4))
    terms = sorted({key for row in rows for key in row if key.startswith("train/")} - set(_NOT_LOSSES))
    if len(terms) == 2:  # one method, whose loss is the sum
        terms.remove("train/loss")
    for i, key in enumerate(terms):
        style = {"color": "black", "linewidth": 2} if key == "train/loss" else {"color": COLORS[i % len(COLORS)]}
        left.plot(
            *series(rows, key),
            marker="." if len(rows) < 40 else "",
            label="weighted sum" if key == "train/loss" else key.removeprefix("train/").replace("_", " "),
            **style,
        )
    values = [row[key] for row in rows for key in terms if row.get(key) is not None]
    lowest, highest = min(values, default=0), max(values, default=0)
    left.set(title="Training loss", xlabel="epoch", ylabel="loss", yscale="log" if highest > 10 * lowest else "linear")
    if terms:
        left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)

    if any("test/accuracy" in row for row in rows):
        _accuracies(right, rows)
    else:
        keys = sorted({k for row in rows for k in row if k.startswith(("test/agreement", "test/cka"))})
        for i, key in enumerate(keys):
            label = key.removeprefix("test/").replace("cka", "CKA of ").replace("of /", "of ")
            right.plot(*series(rows, key), color=COLORS[i % len(COLORS)], marker=".", label=label)
        unit = "CKA" if all("cka" in key for key in keys) else "fraction of images, or CKA"
        right.set(title="Similarity to the teacher, test", xlabel="epoch", ylabel=unit)
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2)
    save(figure, path)


def _accuracies(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    marker = "." if len(rows) < 40 else ""
    axis.plot(*series(rows, "train/accuracy"), color=COLORS[0], alpha=0.5, marker=marker, label="student, train")
    axis.plot(*series(rows, "test/accuracy"), color=COLORS[0], marker=".", label="student, test")
    colors = itertools.cycle(COLORS[1:])
    for key in sorted({key for row in rows for key in row if key.startswith("test/teacher_accuracy")}):
        at_teacher = key.removeprefix("test/teacher_accuracy")  # "@dino" for one of several teachers
        teacher_accuracy = series(rows, key)[1]
        if not len(teacher_accuracy):
            continue
        axis.axhline(teacher_accuracy[-1], color=next(colors), linestyle="--", label=f"teacher{at_teacher}, test")
        label = f"agreement{at_teacher}" if at_teacher else "agreement of both"
        axis.plot(*series(rows, f"test/agreement{at_teacher}"), color=next(colors), marker=".", label=label)
    axis.set(title="Accuracy", xlabel="epoch", ylabel="fraction of images")


def spectra(path: epath.Path, networks: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """Draws the radial power spectra of feature maps, one panel per stage.

    Args:
      path: Path of the PNG.
      networks: `cycles_per_image` and `power` of each stage, by the network's name in the legend and the stage.
    """
    stages = sorted({stage for features in networks.values() for stage in features})
    figure, panels = axes(1, len(stages), (3.2 * len(stages), 3.8), sharey=True)
    for axis, stage in zip(np.ravel(panels), stages, strict=True):
        colors, dashes = itertools.cycle(COLORS), itertools.cycle(("--", ":", "-."))
        for name, features in networks.items():
            is_teacher = name.startswith("teacher")
            style = {"color": "black", "linestyle": next(dashes)} if is_teacher else {"color": next(colors)}
            if stage in features:
                power = np.asarray(features[stage]["power"])
                axis.plot(features[stage]["cycles_per_image"], power / power.sum(), marker=".", label=name, **style)
        axis.set(title=stage, xlabel="cycles per image", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    np.ravel(panels)[0].set_ylabel("mean power of a frequency, relative")
    handles, labels = np.ravel(panels)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


_NOT_LOSSES = ("train/accuracy", "train/grad_norm", "train/learning_rate", "train/images_per_second")


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs and values of one key of `metrics.jsonl`, for rows that have both."""
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and "epoch" in row]
    return tuple(np.asarray(points, float).reshape(-1, 2).T)


def axes(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[matplotlib.figure.Figure, Any]:
    """Returns an empty figure of `size` inches and its axes, in this project's style."""
    # Without pyplot, no display is needed and the user's backend is unchanged.
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, **kwargs)
    for axis in np.ravel(panels):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, panels


def save(figure: matplotlib.figure.Figure, path: epath.Path) -> None:
    """Writes a figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format="png")
    storage.write_bytes(path, file.getvalue())
