"""Makes a data set readable: `python -m lfcc_jax.data.prepare cifar100`, or of an existing copy in TFRecords.

    python -m lfcc_jax.data.prepare cifar100
    python -m lfcc_jax.data.prepare imagenet2012 --manual-dir=ARCHIVES
    python -m lfcc_jax.data.prepare ~/tensorflow_datasets/imagenet2012/5.1.0 --out=DIRECTORY

The first two download and build it, once, into TFDS's directory, and need TensorFlow for encoding images
(pip install ".[tf]"). ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar come from image-net.org, with an account;
they take 150 GB, and what is built of them as much again. The third needs neither TensorFlow nor network.
"""

import argparse
import importlib.util
import os
import re
import sys

import tensorflow_datasets as tfds
from etils import epath

from lfcc_jax import storage
from lfcc_jax.data.records import to_array_record
from lfcc_jax.errors import UserError, unknown


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="the name of a TFDS data set, or the directory of one in TFRecords")
    parser.add_argument("--data-dir", help="where to build it; TFDS's own default if not given")
    parser.add_argument("--manual-dir", help="where archives lie that cannot be downloaded, for example ImageNet's")
    parser.add_argument("--out", help="for a copy in TFRecords: the directory to be made")
    given = parser.parse_args(arguments)
    try:
        if given.data.startswith(("/", "~", ".")) or storage.is_remote(given.data) or os.path.isdir(given.data):
            if not given.out:
                raise UserError("--out: missing; give the directory to be made")
            place = to_array_record(given.data, given.out)
        else:
            place = build(given.data, given.data_dir, given.manual_dir)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{place} can be read: --config.data.name={place}")


def build(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> epath.Path:
    """Downloads and builds a data set of TFDS as ArrayRecord; returns its directory.

    Raises:
      UserError: for an unknown name, if TensorFlow is missing, or what TFDS says went wrong.
    """
    if re.split("[/:]", name)[0] not in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"{unknown('data set', name, _SOME)} TFDS has many more.")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError('TFDS needs TensorFlow to encode images: pip install ".[tf]"')
    if storage.is_remote(data_dir or ""):
        raise UserError(
            f"`--data-dir` must be on a local disk, since ArrayRecord cannot be written to a bucket, got '{data_dir}'"
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        builder.download_and_prepare(download_config=config)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    return epath.Path(builder.data_dir)


_SOME = ("cifar10", "cifar100", "imagenet2012", "imagenette", "mnist", "oxford_iiit_pet", "stl10")


if __name__ == "__main__":
    main()
