"""Command line: evaluates a trained network on a data set, class by class.

python -m lfcc_jax.evaluate runs/lfcc --data=digits --split=test
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from lfcc_jax import models, runtime, storage
from lfcc_jax.data import Source, device_crop, eval_batches, full_name, open_source
from lfcc_jax.errors import UserError, shown
from lfcc_jax.models import Output
from lfcc_jax.training import pictures
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.parts import Parts
from lfcc_jax.training.sharding import create_mesh, replicated, to_global

# Number of classes that the confusion picture labels, and that the command prints.
_LABELED, _PRINTED = 50, 20


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and evaluates; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a work directory, or a saved network")
    parser.add_argument(
        "--data", required=True, help="a folder of images, a CSV file, or a data set, as in config.data.name"
    )
    parser.add_argument("--split", default="test", help="its split (default: test)")
    parser.add_argument("--data-dir", default="", help="directory of prepared data sets (default: TFDS's)")
    parser.add_argument("--batch-size", type=int, default=256, help="images per step (default: 256)")
    parser.add_argument("--out", help="directory of the results (default: evaluation_SPLIT in RUN)")
    args = parser.parse_args(arguments)
    runtime.cache_programs()
    try:
        if args.batch_size < 1:
            raise UserError(f"--batch-size must be positive, got {args.batch_size}")
        split = "".join(c if c.isalnum() else "_" for c in args.split).strip("_")
        run = storage.resolve(args.run, "RUN")
        out = storage.resolve(args.out, "--out") if args.out else run / f"evaluation_{split}"
        storage.check_writable(out, "--out")
        image_size = models.describe(args.run)["image_size"]
        source = open_source(full_name(args.data), args.split, args.data_dir)
        runtime.keep_freed_memory(min(args.batch_size, len(source.examples)) * image_size**2)
        network, variables, class_names = _load(args.run)
        _check_sizes(network, source)
        if source.class_names and class_names and list(source.class_names) != list(class_names):
            raise UserError(
                f"data set '{source.name}' must have the network's classes, {shown(list(class_names))}, got "
                f"{shown(list(source.class_names))}"
            )
        class_names = source.class_names or class_names
        metrics, confusion = _evaluate(network, variables, source, args.batch_size)
        names = list(class_names) or [str(i) for i in range(network.num_classes)]
        classes = _class_table(confusion, names)
        _write(out, metrics, confusion, classes, names, {"network": args.run, "data": args.data, "split": args.split})
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _load(run: str) -> tuple[Any, Any, Sequence[str]]:
    """Returns a saved network, its variables, and its class names, if they are known."""
    network, variables = models.load(run)
    if network.output_shapes().logits is None:
        raise UserError(f"{run} has no classifier, so it cannot be evaluated on labels")
    class_names = models.describe(run).get("class_names") or ()
    if class_names and len(class_names) != network.num_classes:
        raise UserError(f"{run}: class_names must be {network.num_classes} names, got {len(class_names)}")
    return network, variables, class_names


def _check_sizes(network: Any, source: Source) -> None:
    where = f"data set '{source.name}'"
    if source.num_classes != network.num_classes:
        raise UserError(f"{where} must have the network's {network.num_classes} classes, got {source.num_classes}")
    if source.image_channels != network.image_channels:
        raise UserError(
            f"{where} must have images with the network's {network.image_channels} channels, "
            f"got {source.image_channels}"
        )


def _evaluate(network: Any, variables: Any, source: Source, batch_size: int) -> tuple[dict[str, float], np.ndarray]:
    """Returns the metrics of `Evaluator`, and the number of images by true class and predicted class."""
    mesh = create_mesh()
    batch_size = -(-min(batch_size, len(source.examples)) // mesh.size) * mesh.size
    crop = {"crop": network.crop_fraction, "interpolation": network.interpolation}
    prepare = device_crop.to_float
    if source.image_size not in (0, network.image_size):
        prepare = functools.partial(device_crop.central_crop, size=network.image_size, **crop)
    variables = jax.device_put(variables, replicated(mesh))
    confusion = np.zeros((network.num_classes,) * 2, np.int64)

    @jax.jit
    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return Parts(mesh)(lambda images: network.apply(variables, prepare(images), train=False)[0])(images)

    def predicted() -> Iterator[dict[str, np.ndarray]]:
        for batch in eval_batches(source, batch_size, image_size=network.image_size, **crop):
            logits = np.asarray(predict(variables, to_global({"image": batch["image"]}, mesh)["image"]))
            mask = np.asarray(batch["mask"])
            np.add.at(confusion, (batch["label"][mask], logits[mask].argmax(-1)), 1)
            yield batch | {"image": logits}

    metrics = Evaluator(_Predicted(), {}, {}, predicted, mesh, lambda logits: logits)({})
    return metrics, confusion


class _Predicted:
    """A network whose images are already its logits, so that each image is classified once."""

    def apply(self, variables: Any, images: jax.Array, train: bool = False) -> Output:
        return Output(images, {})


def _class_table(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns accuracy, count and most frequent confusion of each class."""
    table = []
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        count, wrong = int(row.sum()), np.where(np.arange(len(row)) == i, 0, row)
        accuracy = float(row[i] / count) if count else None
        confused = int(wrong.argmax()) if wrong.any() else None
        table.append(
            {
                "class": name,
                "accuracy": accuracy,
                "count": count,
                "confused_with": None if confused is None else names[confused],
                "confused": 0 if confused is None else int(wrong[confused]),
            }
        )
    return table


def _write(
    out: epath.Path,
    metrics: dict[str, float],
    confusion: np.ndarray,
    classes: list[dict[str, Any]],
    names: Sequence[str],
    about: dict[str, str],
) -> None:
    count = int(confusion.sum())
    result = about | {"count": count} | metrics | {"classes": classes, "confusion": confusion.tolist()}
    storage.make_directory(out)
    storage.write_json(out / "evaluation.json", result)
    title = f"{about['data'][-40:]}, {about['split']}\n{count:,} images, accuracy {metrics['accuracy']:.1%}"
    _draw(out / "confusion.png", confusion, names, title)
    print(f"{about['network']} on {about['data']}, {about['split']}, {count:,} images")
    for name, value in metrics.items():
        print(f"  {name.replace('_', ' '):18} {value:.4f}")
    seen = sorted((row for row in classes if row["count"]), key=lambda row: row["accuracy"])
    print("worst classes" if len(seen) > _PRINTED else "classes", "(accuracy, images, most often confused with)")
    width = max(len(row["class"]) for row in seen[:_PRINTED])
    for row in seen[:_PRINTED]:
        confused = f"  {row['confused_with']} ({row['confused']})" if row["confused"] else ""
        print(f"  {row['class']:{width}} {row['accuracy']:7.1%} {row['count']:7,}{confused}")
    print(f"results written to {out}")


def _draw(path: epath.Path, confusion: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draws the fraction of each class's images that was predicted as each class."""
    num_classes = len(names)
    labeled = num_classes <= _LABELED
    side = min(max(4.5, 1.5 + 0.28 * num_classes), 14) if labeled else 9
    figure, axis = pictures.axes(1, 1, (side + 1.2, side))
    axis.grid(visible=False)
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    # Small fractions of one pixel would not be seen among many classes, so the scale is not linear.
    image = axis.imshow(
        np.sqrt(fractions), cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if labeled else "auto"
    )
    axis.set_title(title, parse_math=False)
    axis.set(xlabel="predicted class", ylabel="true class")
    if labeled:
        short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        turned = max(map(len, short)) > 2
        axis.set_xticks(range(num_classes), short, rotation=90 if turned else 0, parse_math=False)
        axis.set_yticks(range(num_classes), short, parse_math=False)
    if num_classes <= 12:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            color = "white" if fractions[i, j] > 0.3 else "black"
            axis.text(j, i, f"{confusion[i, j]:,}", ha="center", va="center", color=color, fontsize=8)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, label="fraction of the true class")
    ticks = np.array([0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{tick:g}" for tick in ticks])
    pictures.save(figure, path)


if __name__ == "__main__":
    main()
