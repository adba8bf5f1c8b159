"""Command line: classifies image files with a trained network.

python -m lfcc_jax.predict runs/lfcc photo.jpg more_photos
python -m lfcc_jax.predict student.onnx photo.jpg --json
python -m lfcc_jax.predict runs/lfcc photos --features=features.npz
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lfcc_jax import models, runtime, storage
from lfcc_jax.data import host_crops
from lfcc_jax.data.files import list_images
from lfcc_jax.errors import UserError

_BATCH, _TOP = 32, 5


class _Predictor(NamedTuple):
    """A network that predicts, and what its images must be.

    Attributes:
      run: Returns `logits` and `pooled`, or one of them, for float32 images `[batch, height, width, channels]`.
      outputs: Names of the outputs.
      image_size: Height and width, in pixels.
      image_channels: 3 for color, 1 for grayscale.
      crop_fraction: As in `models.Network`.
      interpolation: As in `models.Network`.
      class_names: Empty if they are unknown.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    outputs: Sequence[str]
    image_size: int
    image_channels: int
    crop_fraction: float
    interpolation: str
    class_names: Sequence[str]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and predicts; exits with status 1 on invalid input, or if an image cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a work directory, a saved network, or an exported .onnx file")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, or a directory: all images in it")
    parser.add_argument("--features", help="a .npz file for the vectors before the classifier (`pooled`) and the paths")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    args = parser.parse_args(arguments)
    runtime.cache_programs()
    try:
        if args.features and not args.features.endswith(".npz"):
            raise UserError(f"--features must end in .npz, got '{args.features}'")
        named = [Path(name).expanduser() for name in args.images]
        paths = [path for name in named for path in (list_images(name) if name.is_dir() else [name])]
        failed = _predict(_open(args.run, len(paths)), paths, args.features, args.json)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(1)


def _predict(network: _Predictor, paths: Sequence[Path], features: str | None, as_json: bool) -> bool:
    """Prints predictions and writes features. Returns whether an image could not be read."""
    if features and "pooled" not in network.outputs:
        raise UserError("--features needs a network with a feature called 'pooled'; this one has none")
    if not features and "logits" not in network.outputs:
        raise UserError("the network has no classifier; --features=FILE.npz writes its vectors")
    done: list[str] = []
    pooled: list[np.ndarray] = []
    for batch, images in _batches(network, paths, min(_BATCH, len(paths))):
        outputs = network.run(images)
        if features:
            pooled.extend(outputs["pooled"][: len(batch)])
        done.extend(map(str, batch))
        for path, logits in zip(batch, outputs.get("logits", ())[: len(batch)], strict=False):
            _print(path, _top(logits, network.class_names), as_json)
    if features and done:
        file = io.BytesIO()
        np.savez(file, pooled=np.stack(pooled), paths=np.array(done))
        storage.write_bytes(storage.resolve(features, "--features"), file.getvalue())
        print(f"{len(done)} vectors of {pooled[0].size} numbers: {features}", file=sys.stderr)
    return len(done) < len(paths)


def _batches(network: _Predictor, paths: Sequence[Path], size: int) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yields the paths of readable images and a full batch that begins with them."""
    batch, images = [], np.zeros((size, *(network.image_size,) * 2, network.image_channels), np.float32)
    for path in paths:
        try:
            images[len(batch)] = _read(network, path)
        except Exception as error:  # decoders may raise anything
            print(f"error: {path} cannot be read: {storage.one_line(error)}", file=sys.stderr)
            continue
        batch.append(path)
        if len(batch) == size:
            yield batch, images
            batch = []
    if batch:
        yield batch, images


def _read(network: _Predictor, path: Path) -> np.ndarray:
    """Returns an image as it is evaluated, upright according to its EXIF orientation."""
    picture = host_crops.decode(path.read_bytes(), network.image_channels, upright=True)
    cropped = host_crops.central_crop(picture, network.image_size, network.crop_fraction, network.interpolation)
    return cropped.astype(np.float32) / 255


def _top(logits: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the most likely classes."""
    exponentials = np.exp(np.asarray(logits, np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    return [
        {
            "index": int(i),
            "name": class_names[i] if class_names else str(i),
            "probability": float(probabilities[i]),
        }
        for i in np.argsort(-probabilities, kind="stable")[:_TOP]
    ]


def _print(path: Path, predictions: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": str(path), "predictions": predictions}))
        return
    print(path)
    for prediction in predictions:
        print(f"  {prediction['probability']:7.2%}  {prediction['name']}")


def _open(run: str, images: int) -> _Predictor:
    network = _open_onnx(run) if run.endswith(".onnx") else _open_saved(run, images)
    if network.image_channels not in (1, 3):
        raise UserError(f"the network's images must have 1 or 3 channels, got {network.image_channels}")
    return network


def _open_saved(run: str, images: int) -> _Predictor:
    about = models.describe(run)
    runtime.keep_freed_memory(min(_BATCH, images) * about["image_size"] ** 2)
    network, variables = models.load(run)

    @jax.jit
    def outputs(images: jax.Array) -> dict[str, jax.Array]:
        logits, features = network.apply(variables, images, train=False)
        named = {"logits": logits, "pooled": features.get("pooled")}
        return {name: value.astype("float32") for name, value in named.items() if value is not None}

    names = jax.eval_shape(outputs, jax.ShapeDtypeStruct(network.image_shape(), "float32"))
    return _Predictor(
        lambda images: jax.device_get(outputs(runtime.ready(jax.device_put(images)))),
        list(names),
        network.image_size,
        network.image_channels,
        network.crop_fraction,
        network.interpolation,
        _checked(about.get("class_names") or (), network.num_classes, run),
    )


def _open_onnx(path: str) -> _Predictor:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'{path} needs onnxruntime ({error}): pip install ".[export]"') from error
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    with storage.errors_in_one_line(f"cannot read {path}"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    about, shape = session.get_modelmeta().custom_metadata_map, session.get_inputs()[0].shape
    if missing := [key for key in ("image_size", "crop_fraction", "interpolation") if key not in about]:
        raise UserError(f"{path} must be written by python -m lfcc_jax.export; it lacks {', '.join(missing)}")
    classes = next((output.shape[1] for output in session.get_outputs() if output.name == "logits"), 0)
    return _Predictor(
        lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True)),
        names,
        int(about["image_size"]),
        shape[-1],
        float(about["crop_fraction"]),
        about["interpolation"],
        _checked(json.loads(about.get("class_names", "[]")), classes, path),
    )


def _checked(class_names: Sequence[str], num_classes: int, where: str) -> Sequence[str]:
    if class_names and len(class_names) != num_classes:
        raise UserError(f"{where}: class_names must be {num_classes} names, got {len(class_names)}")
    return class_names


if __name__ == "__main__":
    main()
