"""Command line: prepares a TFDS data set as ArrayRecord, or converts an existing copy in TFRecord.

    python -m lfcc_jax.data.prepare cifar100
    python -m lfcc_jax.data.prepare imagenet2012 --manual-dir=ARCHIVES
    python -m lfcc_jax.data.prepare ~/tensorflow_datasets/imagenet2012/5.1.0 --out=DIRECTORY

The first two download and build the data set in TFDS's directory, and need TensorFlow to encode images
(pip install ".[tf]"). ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar come from image-net.org, with an account;
they take 150 GB, and the built data set takes as much again. The third needs neither TensorFlow nor network.
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
    """Parses the command line and runs it; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="name of a TFDS data set, or directory of a prepared one in TFRecord")
    parser.add_argument("--data-dir", help="directory to build it in (default: TFDS's)")
    parser.add_argument("--manual-dir", help="directory of archives that cannot be downloaded, for example ImageNet's")
    parser.add_argument("--out", help="for a data set in TFRecord: a new directory")
    args = parser.parse_args(arguments)
    try:
        if args.data.startswith(("/", "~", ".")) or storage.is_remote(args.data) or os.path.isdir(args.data):
            if not args.out:
                raise UserError("--out is required to convert a data set in TFRecord; give a new directory")
            directory = to_array_record(args.data, args.out)
        else:
            directory = build(args.data, args.data_dir, args.manual_dir)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"prepared {directory}; to train on it, set --config.data.name={directory}")


def build(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> epath.Path:
    """Downloads a TFDS data set and builds it as ArrayRecord. Returns its directory.

    Raises:
      UserError: if the name is unknown, TensorFlow is not installed, or TFDS fails.
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
