"""Command line: a timm checkpoint becomes a teacher, or a trained student becomes a timm checkpoint.

python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint x.safetensors --out runs/teacher
python -m lfcc_jax.convert --to-timm --checkpoint runs/lfcc --out student.safetensors
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import jax
import numpy as np

from lfcc_jax import models
from lfcc_jax.convert.files import read_state_dict, sha256, write_safetensors
from lfcc_jax.convert.names import timm_name
from lfcc_jax.convert.timm import from_timm, to_timm
from lfcc_jax.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and converts; ends with one line and status 1 after an input that will not do."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a .safetensors, .npz or .pth file; with --to-timm, a run")
    parser.add_argument("--out", required=True, help="a new directory; with --to-timm, a new .safetensors file")
    parser.add_argument("--to-timm", action="store_true", help="write a trained student as a timm checkpoint")
    parser.add_argument("--model", help="timm's name of the network")
    parser.add_argument("--head", default="keep", choices=("keep", "new"), help="the classifier (default: keep)")
    parser.add_argument("--num-classes", type=int, help="of a new head")
    parser.add_argument("--image-size", type=int, help="height and width, in pixels (default: as the name says)")
    parser.add_argument(
        "--mean", type=float, nargs="+", help="subtracted from images in [0, 1] (default: the network's)"
    )
    parser.add_argument("--std", type=float, nargs="+", help="what images are then divided by (default: the network's)")
    parser.add_argument(
        "--crop", type=float, help="share of the resized image kept in evaluation (default: as timm's first)"
    )
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="with which it is resized")
    given = parser.parse_args(arguments)
    try:
        if given.head == "keep" and given.num_classes is not None and given.num_classes < 1:
            raise UserError(f"--num-classes: {given.num_classes} will not do")
        if given.to_timm:
            of_no_use = ("model", "num_classes", "image_size", "mean", "std", "crop", "interpolation")
            if refused := [name for name in of_no_use if getattr(given, name) is not None]:
                names = ", ".join("--" + name.replace("_", "-") for name in refused)
                raise UserError(f"{names}: the run says that itself, and --to-timm changes nothing of it")
            _student_to_timm(given)
        elif given.model is None:
            raise UserError("--model: missing; which network is it? For example resnet18")
        else:
            _teacher_from_timm(given)
    except UserError as error:
        sys.exit(f"error: {error}")


def _teacher_from_timm(given: argparse.Namespace) -> None:
    out = Path(given.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name another directory, or remove it")
    overrides = {key: tuple(value) for key in ("mean", "std") if (value := getattr(given, key))}
    overrides |= {key: value for key in ("crop", "interpolation") if (value := getattr(given, key)) is not None}
    settings = {"num_classes": given.num_classes, "image_size": given.image_size}
    models.create(given.model, 1, given.image_size, **overrides)  # a wrong name is said before a file is read
    state = read_state_dict(given.checkpoint)
    variables = from_timm(given.model, state, head=given.head, **settings, **overrides)
    network = models.create(given.model, len(variables["params"]["head"]["bias"]), given.image_size, **overrides)
    origin = {
        "source": Path(given.checkpoint).name,
        "sha256": sha256(given.checkpoint),
        "head": given.head,
        "mean": network.mean,
        "std": network.std,
        "crop": network.crop,
        "interpolation": network.interpolation,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    description = {
        "name": given.model,
        "num_classes": network.num_classes,
        "image_size": network.image_size,
        "overrides": overrides,
        "made_by": origin,
    }
    models.save(out, variables, description)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    print(f"{given.model}, {count:,} parameters, {network.num_classes} classes: {out}")


def _student_to_timm(given: argparse.Namespace) -> None:
    about = models.describe(given.checkpoint)
    network, variables = models.load(given.checkpoint)
    state = to_timm(about["name"], variables, image_size=about["image_size"], **about["overrides"])
    constants = {
        key: json.dumps(getattr(network, key)) for key in ("image_size", "mean", "std", "crop", "interpolation")
    }
    write_safetensors(given.out, state, {"model": about["name"]} | constants)
    print(f"{about['name']}, {len(state)} tensors, {network.num_classes} classes: {given.out}")
    name = timm_name(about["name"])
    if name is None:
        print(f"timm has no network called {about['name']}; the tensors are named as in its networks of that family")
    else:
        size = "" if name.startswith(("resnet", "mobilenet", "convnext")) else f"img_size={network.image_size}, "
        print(f'timm.create_model("{name}", num_classes={network.num_classes}, {size}checkpoint_path="{given.out}")')


if __name__ == "__main__":
    main()
