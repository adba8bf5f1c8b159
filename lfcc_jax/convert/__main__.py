"""Command line: converts a timm checkpoint to a teacher. `python -m lfcc_jax.export --format=timm` is the way back.

python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint x.safetensors --out runs/teacher
"""

import argparse
import datetime
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lfcc_jax import models, storage
from lfcc_jax.convert.files import read_state_dict, sha256
from lfcc_jax.convert.timm import from_timm
from lfcc_jax.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and converts; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a .safetensors, .npz, .pth or .pth.tar file")
    parser.add_argument("--out", required=True, help="a new directory")
    parser.add_argument("--model", help="timm's name of the network")
    parser.add_argument("--head", default="keep", choices=("keep", "new"), help="the classifier (default: keep)")
    parser.add_argument("--num-classes", type=int, help="number of classes of a new head; 0 for no head")
    parser.add_argument("--image-size", type=int, help="height and width, in pixels (default: from the model's name)")
    parser.add_argument("--image-channels", type=int, help="3 for color, 1 for grayscale (default: 3)")
    parser.add_argument(
        "--mean", type=float, nargs="+", help="subtracted from images in [0, 1] (default: the network's)"
    )
    parser.add_argument("--std", type=float, nargs="+", help="divides the images after that (default: the network's)")
    parser.add_argument(
        "--crop-fraction", type=float, help="fraction of the resized image kept in evaluation (default: the network's)"
    )
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="how images are resized")
    args = parser.parse_args(arguments)
    try:
        if args.head == "keep" and args.num_classes is not None and args.num_classes < 1:
            raise UserError(f"--num-classes must be positive, got {args.num_classes}")
        if "://" in args.out:
            raise UserError(f"--out must be a local path, got {args.out}; convert locally, then copy the result there")
        if storage.is_remote(args.out):
            raise UserError(f"--out must be on a local disk, got '{args.out}'; gcloud storage cp copies it to a bucket")
        if args.model is None:
            raise UserError("--model is required, for example --model resnet18")
        _teacher_from_timm(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def _teacher_from_timm(args: argparse.Namespace) -> None:
    out = Path(args.out).expanduser().absolute()
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; name another directory, or remove it")
    overrides = {key: tuple(value) for key in ("mean", "std") if (value := getattr(args, key))}
    for key in ("crop_fraction", "interpolation", "image_channels"):
        if (value := getattr(args, key)) is not None:
            overrides[key] = value
    settings = {"num_classes": args.num_classes, "image_size": args.image_size}
    # Validate the arguments before reading any file.
    models.create(args.model, 1, args.image_size, **overrides).variable_shapes()
    state = read_state_dict(args.checkpoint)
    variables = from_timm(args.model, state, head=args.head, **settings, **overrides)
    num_classes = len(variables["params"]["head"]["bias"]) if "head" in variables["params"] else 0
    network = models.create(args.model, num_classes, args.image_size, **overrides)
    origin = {
        "source": Path(args.checkpoint).name,
        "sha256": sha256(args.checkpoint),
        "head": args.head,
        "mean": network.mean,
        "std": network.std,
        "crop_fraction": network.crop_fraction,
        "interpolation": network.interpolation,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    description = {
        "name": args.model,
        "num_classes": network.num_classes,
        "image_size": network.image_size,
        "overrides": overrides,
        "made_by": origin,
    }
    _save(out, variables, description)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    print(f"{args.model}, {count:,} parameters, {network.num_classes or 'no'} classes: {args.out}")


def _save(out: Path, variables: Any, description: dict[str, Any]) -> None:
    """Saves a network to a temporary directory, then renames it, so that `out` is never incomplete."""
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        models.save(partial, variables, description)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
