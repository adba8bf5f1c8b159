"""Command line: distills a teacher into a student on any images, with settings that suit both.

    python -m lfcc_jax.distill --teacher=runs/teacher --student=mobilenetv2_100 --data=PHOTOS --out=runs/student

What it chooses is printed, and written to OUT/config.py. To change more than this command lets you:

    python -m lfcc_jax.main --config=OUT/config.py --workdir=runs/other --config.losses.lfcc.weight=2.0
"""

import argparse
import os
import pprint
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from lfcc_jax import data, models, runtime, storage
from lfcc_jax.data import Inputs
from lfcc_jax.errors import UserError
from lfcc_jax.main import end_interrupted, guarded
from lfcc_jax.methods import presets
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import check_blocks, network
from lfcc_jax.training.preemption import answer_interrupts
from lfcc_jax.training.processes import is_first
from lfcc_jax.training.report import log

# Number of images, with repetition, that a run takes unless `epochs` is given, and bounds on the epochs.
_IMAGES, _FEWEST_EPOCHS, _MOST_EPOCHS = 20_000_000, 30, 300
# A batch is at most this large, and at most this fraction of the data.
_LARGEST_BATCH, _FRACTION = 256, 1 / 8
# The learning rate at a batch of 256; it grows with the square root of the batch, as is usual for AdamW.
_LEARNING_RATE = 1e-3
_TYPICAL_SIZE = 224
# What errors advise, and how this command calls it.
_FLAGS = {
    "config.data.skip_unreadable=True": "--skip-unreadable",
    "config.data.labels=False": "--no-labels",
    "choose another --workdir": "choose another --out",
}


def distill(
    teacher: Any,
    student: Any,
    data: str,
    out: str,
    *,
    test_data: str = "",
    labels: bool = True,
    method: str = "",
    epochs: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    workers: int = 0,
    skip_unreadable: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """Distills a teacher into a student. Called again with the same arguments, it resumes or returns the result.

    Args:
      teacher: Directory of a trained or converted network; `FILE.py:FUNCTION`; or a network with its weights.
      student: Name of a network; `FILE.py:FUNCTION`; or a network.
      data: Folder of images, CSV file, or the name of a data set, as in `lfcc_jax.data.open_source`.
      out: Work directory of the run.
      test_data: The same for the test images; 10 % of the images, or their test split, if empty.
      labels: Whether to use the labels of the images, if there are any.
      method: One of `lfcc_jax.methods.presets.METHODS`. By default the student learns from whatever there is:
        cross-entropy with the labels, KD with the teacher's logits or else CRD with its pooled features, and LFCC.
      epochs: Number of epochs. By default the run takes 20 million images, and between 30 and 300 epochs.
      batch_size: Global batch size. By default at most 256, and at most an eighth of the images.
      image_size: Height and width of the networks' input, in pixels. By default the teacher's.
      workers: Number of processes that read images; 0 uses threads.
      skip_unreadable: Whether to leave out images that cannot be read.
      dtype: Compute dtype, `float32` or `bfloat16`.
      seed: Seed of the run.

    Returns:
      The summary of the run; see `lfcc_jax.train.train_and_evaluate`.

    Raises:
      UserError: if an argument is invalid; otherwise as `lfcc_jax.train.train_and_evaluate`.
    """
    settings = {name: value for name, value in locals().items() if name not in ("teacher", "student", "data", "out")}
    directory = storage.resolve(out, "--out")
    if storage.exists(directory / "config.py") and storage.exists(directory / "config.json"):
        # The run is there, so its length stays, even if there are more images or devices now.
        made = storage.read_json(directory / "config.json")
        settings |= {key: made[key] for key in ("epochs", "batch_size") if settings[key] is None}
    config, given, choices = choose(teacher, student, data, **settings)
    for line in choices:
        log(line)
    if not given and is_first() and not storage.exists(directory / "config.json"):
        storage.check_writable(directory, "--out")
        storage.make_directory(directory)
        storage.write_text(directory / "config.py", _file(config))
        log(f"this is the config {directory / 'config.py'}")
    return train_and_evaluate(config, out, **given)


def choose(
    teacher: Any,
    student: Any,
    data_name: str,
    *,
    test_data: str,
    labels: bool,
    method: str,
    epochs: float | None,
    batch_size: int | None,
    image_size: int | None,
    workers: int,
    skip_unreadable: bool,
    dtype: str,
    seed: int,
) -> tuple[ConfigDict, dict[str, Any], list[str]]:
    """Returns the config of a run, the networks in it that are Python objects, and a line about each choice.

    Args: as those of `distill`.

    Raises:
      UserError: if an argument is invalid.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be positive, got {batch_size}")
    if epochs is not None and not 0 < epochs <= 10**6:
        raise UserError(f"--epochs must be a positive number, got {epochs}")
    blocks, given = {}, {}
    for role, value in (("teacher", teacher), ("student", student)):
        if isinstance(value, str):
            blocks[role] = {"name": _absolute(value) if _is_factory(value) else value}
        else:
            given[role] = value
    made = None
    if "teacher" in blocks and not _is_factory(teacher):
        made = _describe(blocks["teacher"]["name"])
        blocks["teacher"] = {"name": made["name"], "checkpoint": _absolute(teacher)}
    block: dict[str, Any] = {"name": data.full_name(data_name), "labels": labels, "workers": workers}
    if test_data:
        block["test_name"] = data.full_name(test_data)
    if skip_unreadable:
        block["skip_unreadable"] = True
    inputs = _open(block, image_size, made and made["image_size"])
    block = block | _sizes(inputs)
    images = inputs.images
    most = min(_LARGEST_BATCH, max(images.count * _FRACTION, 1))
    runtime.keep_freed_memory(int(batch_size or most) * inputs.image_size**2)

    choices = [_about_data(inputs, block["name"])]
    classes, use_logits, about = _teacher_logits(blocks.get("teacher"), given.get("teacher"), made, inputs, dtype)
    choices.append(about)
    if "teacher" in blocks and not use_logits and classes:
        blocks["teacher"]["logits"] = False
    student_name = blocks["student"]["name"] if "student" in blocks else type(student).__name__
    losses = _losses(method, images.num_classes > 0, use_logits, student_name)
    weights = ", ".join(f"{name} (weight {loss.get('weight', 1.0)})" for name, loss in losses.items())
    choices.append(f"losses: {weights}")

    devices = jax.device_count()
    if batch_size is None:
        batch_size = max(devices, 2 ** int(most).bit_length() // 2 // devices * devices)
    if epochs is None:
        epochs = float(min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_IMAGES / images.count))))
    steps = round(epochs * (images.count // batch_size))
    peak = _LEARNING_RATE * (batch_size / 256) ** 0.5
    choices.append(
        f"{epochs:g} epochs of {images.count // batch_size:,} steps with {batch_size} images, {steps:,} steps in all; "
        f"AdamW with a peak learning rate of {peak:.2g}"
    )
    config: dict[str, Any] = {
        "seed": seed,
        "data": block,
        **blocks,
        "losses": losses,
        "optimizer": {
            "name": "adamw",
            "learning_rate": {"name": "cosine", "peak": peak, "final": 0.0, "warmup_epochs": 0.05 * epochs},
            "weight_decay": 0.05,
            "clip_norm": 1.0,
        },
        "epochs": float(epochs),
        "batch_size": batch_size,
        "dtype": dtype,
        "log_every_steps": max(1, min(10, images.count // batch_size)),
        "eval_every_epochs": max(1.0, round(epochs / 10)),
    }
    if not given:
        check_blocks(read_config(config))
    return ConfigDict(config), given, choices


def _describe(path: str) -> dict[str, Any]:
    if path.endswith((".safetensors", ".pth", ".tar", ".npz")):
        raise UserError(
            f"--teacher must be the directory of a network, got the file {path}; convert it first: "
            f"python -m lfcc_jax.convert --model=NAME --checkpoint={path} --out=runs/teacher"
        )
    if not os.path.isdir(os.path.expanduser(path)) and not storage.is_remote(path):
        known = f"; {path} is a network without weights" if path in models.list_models() else ""
        raise UserError(
            f"--teacher must be the directory of a trained network, or FILE.py:FUNCTION, got '{path}'{known}. "
            "python -m lfcc_jax.convert --help says how to get a network of timm"
        )
    return models.describe(path)


def _is_factory(name: str) -> bool:
    """Returns whether a string is `FILE.py:FUNCTION`, not a path."""
    return ":" in name and not storage.is_remote(name) and not os.path.isdir(os.path.expanduser(name))


def _absolute(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _open(block: Mapping[str, Any], image_size: int | None, of_teacher: int | None) -> Inputs:
    """Returns the images, resized if necessary: to `image_size`, else to the teacher's size."""
    size = image_size or of_teacher
    if size is None:
        try:
            return data.open_inputs(**block)
        except UserError as error:
            if "config.data.image_size is required" not in str(error):
                raise
            size = _TYPICAL_SIZE
    inputs = data.open_inputs(**block, image_size=size)
    return inputs if inputs.train.image_size != size else data.open_inputs(**block)


def _sizes(inputs: Inputs) -> dict[str, Any]:
    """Returns the keys of the data block that say how images are resized and augmented."""
    if inputs.train.image_size == inputs.image_size:
        return {"augmentation": {"flip": True, "padding": max(1, inputs.image_size // 8)}}
    return {"image_size": inputs.image_size, "augmentation": {"flip": True}}


def _about_data(inputs: Inputs, name: str) -> str:
    images = inputs.images
    classes = "no labels"
    if images.num_classes:
        names = ", ".join([*images.class_names[:5], *(["..."] if len(images.class_names) > 5 else [])])
        named = f" ({names}; if they are not classes: --no-labels)" if names else ""
        classes = f"{images.num_classes:,} classes{named}"
    return (
        f"data: {name}, {images.count:,} images to train and {len(inputs.test.examples):,} to test, {classes}, "
        f"{images.size} x {images.size} pixels"
    )


def _teacher_logits(
    block: Mapping[str, Any] | None, given: Any, made: Mapping[str, Any] | None, inputs: Inputs, dtype: str
) -> tuple[int, bool, str]:
    """Returns the teacher's number of classes, whether they are the student's, and a line about that."""
    images = inputs.images
    if made is not None:
        name, classes, names = made["name"], made["num_classes"], tuple(made.get("class_names") or ())
    else:
        any_classes = images._replace(num_classes=0)
        teacher = network(block or {}, any_classes, dtype, "config.teacher", given)
        name, classes, names = teacher.name, teacher.num_classes, ()
    if not classes:
        return 0, False, f"teacher: {name}, without a classifier: its features teach"
    if not images.num_classes:
        return classes, True, f"teacher: {name}, whose {classes:,} classes the student will have"
    if classes != images.num_classes or (names and images.class_names and names != images.class_names):
        return (
            classes,
            False,
            f"teacher: {name}, whose {classes:,} classes are not those of the data: its features teach",
        )
    return classes, True, f"teacher: {name}, with the classes of the data"


def _losses(method: str, labels: bool, logits: bool, student: str) -> dict[str, dict[str, Any]]:
    family = student if ":" not in student and student in models.list_models() else "resnet18"
    blocks = presets.losses(method or "lfcc", family)
    if not method and not logits:
        del blocks["kd"]
        blocks["crd"] = presets.losses("crd", family)["crd"]
    if not labels:
        del blocks["cross_entropy"]
    return blocks


def _file(config: ConfigDict) -> str:
    body = pprint.pformat(config.to_dict(), sort_dicts=False, width=100)
    return (
        '"""The config of a run of `python -m lfcc_jax.distill`."""\n\nfrom ml_collections import ConfigDict\n\n\n'
        'def get_config() -> ConfigDict:\n    """Returns the config."""\n    return ConfigDict(\n'
        + "".join(f"        {line}\n" for line in body.splitlines())
        + "    )\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs it; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="directory of a network, or FILE.py:FUNCTION")
    parser.add_argument("--student", required=True, help="name of a network, or FILE.py:FUNCTION")
    parser.add_argument("--data", required=True, help="folder of images, CSV file, hf:NAME, or name of a TFDS data set")
    parser.add_argument("--out", required=True, help="directory of the run; the same command resumes it")
    parser.add_argument("--test-data", default="", help="test images, if they are not in --data (default: 10%% of it)")
    parser.add_argument("--no-labels", action="store_true", help="do not use the labels")
    parser.add_argument("--method", default="", help=f"instead of what fits: {', '.join(presets.METHODS)}")
    parser.add_argument("--epochs", type=float, help="number of epochs (default: from the number of images)")
    parser.add_argument("--batch-size", type=int, help="images per step, over all devices (default: up to 256)")
    parser.add_argument("--image-size", type=int, help="height and width in pixels (default: the teacher's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: threads)")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: float32")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--distributed", action="store_true", help="one of several processes (TPU pod, Slurm, MPI)")
    args = vars(parser.parse_args(arguments))
    distributed, labels = args.pop("distributed"), not args.pop("no_labels")

    def run() -> None:
        answer_interrupts(end_interrupted)
        try:
            distill(**args, labels=labels)
        except UserError as error:
            message = str(error)
            for key, flag in _FLAGS.items():
                message = message.replace(key, flag)
            raise UserError(message) from error

    guarded(run, distributed)


if __name__ == "__main__":
    main()
