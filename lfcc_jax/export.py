"""Command line: writes a trained network as ONNX, StableHLO, or a timm checkpoint.

python -m lfcc_jax.export runs/lfcc --format=onnx --out=student.onnx
python -m lfcc_jax.export runs/lfcc --format=stablehlo --out=student.stablehlo
python -m lfcc_jax.export runs/lfcc --format=timm --out=student.safetensors
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lfcc_jax import models, runtime, storage
from lfcc_jax.convert import to_timm
from lfcc_jax.convert.create_model import create_model_call
from lfcc_jax.convert.files import write_safetensors
from lfcc_jax.errors import UserError
from lfcc_jax.models.attention import plain_attention

# Batch sizes of the check, and the largest difference from the network, relative to the largest output.
_BATCHES, _TOLERANCE = (1, 7), 1e-4
_PLATFORMS = ("cpu", "cuda", "tpu")

_Outputs = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and exports; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a work directory, or a saved network")
    parser.add_argument("--format", required=True, choices=("onnx", "stablehlo", "timm"), help="what to write")
    parser.add_argument("--out", required=True, help="a new file")
    args = parser.parse_args(arguments)
    runtime.cache_programs()
    write = {"onnx": _write_onnx, "stablehlo": _write_stablehlo, "timm": _write_timm}[args.format]
    try:
        if storage.is_remote(args.out):
            raise UserError(f"--out must be on a local disk, got '{args.out}'; gcloud storage cp copies it to a bucket")
        out = storage.resolve(args.out, "--out")
        if out.exists():
            raise UserError(f"{args.out} already exists; name another file, or remove it")
        storage.check_writable(out.parent, "--out")
        with plain_attention():  # exported programs may not call cuDNN
            write(args.run, args.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _write_onnx(run: str, out: str) -> None:
    try:
        import onnxruntime

        from lfcc_jax.convert.onnx import to_onnx
    except ImportError as error:
        raise UserError(f'--format=onnx needs onnx and onnxruntime ({error}): pip install ".[export]"') from error
    about, network, function = _load(run, jnp.float32)
    constants = {
        "model": about["name"],
        "image_size": network.image_size,
        "crop_fraction": network.crop_fraction,
        "interpolation": network.interpolation,
    }
    if about.get("class_names"):
        constants["class_names"] = about["class_names"]
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in constants.items()}
    with jax.default_device(_cpu()):
        model = to_onnx(function, network.image_shape()[1:], metadata)
    with storage.errors_in_one_line("onnxruntime cannot load the ONNX model"):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    difference = _check(
        lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True)), function, network
    )
    _write(out, model)
    _report(about, network, names, difference, out)
    print(
        "    import numpy, onnxruntime\n"
        f"    session = onnxruntime.InferenceSession({str(out)!r})\n"
        f"    images = numpy.zeros({(1, *network.image_shape()[1:])}, numpy.float32)  # in [0, 1]\n"
        f"    {', '.join(names)}{',' if len(names) == 1 else ''} = session.run({names}, {{'images': images}})"
    )


def _write_stablehlo(run: str, out: str) -> None:
    about, network, function = _load(run)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.image_shape()[1:]), jnp.float32)
    with storage.errors_in_one_line("the network cannot be compiled for a batch of unknown size"):
        exported = export.export(jax.jit(function), platforms=_PLATFORMS)(images)
        content = bytes(exported.serialize())
    loaded = export.deserialize(bytearray(content))
    with jax.default_device(_cpu()):
        difference = _check(jax.jit(loaded.call), function, network)
    _write(out, content)
    names = list(jax.eval_shape(function, jax.ShapeDtypeStruct(network.image_shape(), jnp.float32)))
    _report(about, network, names, difference, out)
    print(
        "    import pathlib, jax, jax.export\n"
        f"    network = jax.export.deserialize(bytearray(pathlib.Path({str(out)!r}).read_bytes()))\n"
        f"    images = jax.numpy.zeros({(1, *network.image_shape()[1:])})  # in [0, 1]\n"
        f"    {names[0]} = jax.jit(network.call)(images)[{names[0]!r}]"
    )


def _write_timm(run: str, out: str) -> None:
    about = models.describe(run)
    if ":" in about["name"]:
        raise UserError(f"{about['name']} is not one of timm's networks; --format=onnx and stablehlo take any network")
    network, variables = models.load(run)
    state = to_timm(about["name"], variables, image_size=about["image_size"], **about["overrides"])
    constants = {
        key: json.dumps(getattr(network, key))
        for key in ("image_size", "mean", "std", "crop_fraction", "interpolation")
    }
    write_safetensors(out, state, {"model": about["name"]} | constants)
    print(f"{about['name']}, {len(state)} tensors, {network.num_classes or 'no'} classes: {out}")
    call = create_model_call(about["name"], network, out)
    print(call or f"timm cannot build this {about['name']}; the tensors have the names of the closest timm network")


def _write(out: str, content: bytes) -> None:
    path = storage.resolve(out, "--out")
    storage.make_directory(path.parent)
    storage.write_bytes(path, content)


def _load(run: str, dtype: Any = None) -> tuple[dict[str, Any], Any, Callable[[Any], _Outputs]]:
    """Returns the description of a saved network, the network, and its function from images to float32 outputs.

    Args:
      run: Work directory or saved network.
      dtype: Dtype to compute in, for networks that have one; the saved one if None.
    """
    about = models.describe(run)
    network, variables = models.load(run)
    if dtype is not None and isinstance(network, models.Network):
        network = network.clone(dtype=dtype)
    variables = jax.device_put(variables, _cpu())

    def function(images: Any) -> _Outputs:
        logits, features = network.apply(variables, images, train=False)
        outputs = {} if logits is None else {"logits": logits}
        if "pooled" in features:
            outputs["pooled"] = features["pooled"].astype(jnp.float32)
        return outputs

    if not jax.eval_shape(function, jax.ShapeDtypeStruct(network.image_shape(), jnp.float32)):
        raise UserError(f"{about['name']} must return logits or a feature called 'pooled'; it returns neither")
    return about, network, function


def _check(exported: Callable[[np.ndarray], _Outputs], function: Callable[[Any], _Outputs], network: Any) -> float:
    """Returns the largest difference between exported outputs and the network's, relative to the largest output.

    Raises:
      UserError: if it exceeds the tolerance.
    """
    images = np.random.default_rng(0).random((max(_BATCHES), *network.image_shape()[1:]), np.float32)
    with jax.default_device(_cpu()):
        expected = {name: np.asarray(value) for name, value in jax.jit(function)(images).items()}
    largest = 0.0
    for batch in _BATCHES:
        with storage.errors_in_one_line(f"the exported network fails at batch size {batch}"):
            outputs = {name: np.asarray(value) for name, value in exported(images[:batch]).items()}
        for name, value in expected.items():
            if outputs[name].shape != value[:batch].shape:
                raise UserError(
                    f"the exported `{name}` must have shape {value[:batch].shape}, got {outputs[name].shape}; "
                    "nothing was written"
                )
            scale = np.abs(value).max() or 1.0
            difference = float(np.abs(outputs[name] - value[:batch]).max() / scale)
            if not difference <= _TOLERANCE:  # NaN too
                raise UserError(
                    f"the exported `{name}` must be within {_TOLERANCE} of the network's, relative to the largest "
                    f"value, got {difference:.2g} at batch size {batch}; nothing was written"
                )
            largest = max(largest, difference)
    return largest


@functools.cache
def _cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


def _report(about: dict[str, Any], network: Any, names: list[str], difference: float, out: str) -> None:
    batches = " and ".join(map(str, _BATCHES))
    print(
        f"{about['name']}, {' and '.join(names)}, images {network.image_shape()[1:]} float32 in [0, 1]: {out}\n"
        f"differs from the network by at most {difference:.1e} (relative, batch sizes {batches}); to use it:"
    )


if __name__ == "__main__":
    main()
