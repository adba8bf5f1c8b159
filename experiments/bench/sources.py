"""Images per second from a folder, a data set of Hugging Face and a TFDS data set, next to torchvision's ImageFolder.

    python -m experiments.bench.sources --rounds=3

Needs torch, torchvision and datasets. The images are scikit-learn's two photographs, as different JPEG files of
500 x 375 pixels, about ImageNet's average, in ten class folders. All read with the same number of processes and take
random crops of 224 pixels. The files are in the page cache. Compare only rates of one run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import datasets
import jax
import numpy as np
import tensorflow_datasets as tfds
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorflow_datasets.proto import tf_example_pb2

from experiments.bench.timing import best_seconds
from lfcc_jax import data
from lfcc_jax.training.report import table

if not hasattr(torch.ops.torchvision, "nms"):
    # A torchvision built for another torch lacks these operators and fails on import; none is called here.
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision import transforms
from torchvision.datasets import ImageFolder

SIZE, CLASSES = 224, 10


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2560, help="number of files (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=40, help="batches per timing (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timings per row (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    parser.add_argument("--many", type=int, default=0, help="also open a folder of so many files (default: none)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_files(root / "folder", options.images)
        names = {
            "folder": f"folder:{root / 'folder'}",
            "Hugging Face": f"hf:{to_hugging_face(root)}",
            "TFDS": str(to_tfds(root)),
        }
        loaders = {
            name: data.train_batches(
                data.open_source(path, "train"), options.batch, seed=0, image_size=SIZE, workers=options.workers
            )
            for name, path in names.items()
        }
        crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()])
        endless = torch.utils.data.RandomSampler(range(options.images), replacement=True, num_samples=10**9)
        loaders["torchvision"] = iter(
            torch.utils.data.DataLoader(
                ImageFolder(str(root / "folder"), crop), options.batch, sampler=endless, num_workers=options.workers
            )
        )
        for loader in loaders.values():  # fill the prefetch buffers
            for _ in range(10):
                next(loader)
        programs = {
            name: lambda loader=loader: [next(loader) for _ in range(options.batches)]
            for name, loader in loaders.items()
        }
        best = best_seconds(programs, options.rounds)
        theirs = best["torchvision"]
        count = options.batch * options.batches
        print(
            f"images/s, best of {options.rounds}; {options.workers} processes, batch {options.batch}; "
            f"jax {jax.__version__}, torch {torch.__version__}, datasets {datasets.__version__}\n"
        )
        rows = [[name, f"{count / seconds:.0f}", f"{theirs / seconds:.2f}"] for name, seconds in best.items()]
        print(table(["source", "images/s", "/ torchvision"], rows))
        if options.many:
            link_files(root / "folder", root / "many", options.many)
            start_time = time.monotonic()
            opened = data.open_inputs(f"folder:{root / 'many'}", image_size=SIZE)
            seconds = time.monotonic() - start_time
            print(f"\na folder of {options.many:,} files is open in {seconds:.1f} s ({opened.images.count:,} to train)")


def write_files(folder: Path, count: int) -> None:
    """Writes different JPEG files in class folders."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(image).resize((520, 390)) for image in load_sample_images().images]
    for i in range(count):
        left, top = rng.integers(0, 20), rng.integers(0, 15)
        path = folder / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[i % 2].crop((left, top, left + 500, top + 375)).save(path, quality=90)


def link_files(folder: Path, target: Path, count: int) -> None:
    """Makes a folder of many files in 1,000 class folders, which share the content of a few."""
    files = sorted(folder.rglob("*.jpg"))
    for i in range(count):
        directory = target / f"n{i % 1000:08d}"
        if i < 1000:
            directory.mkdir(parents=True)
        os.link(files[i % len(files)], directory / f"{directory.name}_{i}.JPEG")


def to_hugging_face(root: Path) -> Path:
    """Saves the files of the folder as a data set of Hugging Face."""
    directories = {"data_dir": str(root / "folder"), "cache_dir": str(root / "cache")}
    datasets.load_dataset("imagefolder", **directories, split="train").save_to_disk(str(root / "hf"))
    return root / "hf"


def to_tfds(root: Path) -> Path:
    """Saves the files of the folder as a TFDS data set in ArrayRecord, without TensorFlow."""
    directory = root / "tfds"
    directory.mkdir()
    image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(num_classes=CLASSES)
    tfds.features.FeaturesDict({"image": image, "label": label}).save_config(str(directory))
    files = sorted((root / "folder").rglob("*.jpg"))
    writer = ArrayRecordWriter(str(directory / "photos-train.array_record-00000-of-00001"), "group_size:1")
    for path in files:
        record = tf_example_pb2.Example()
        record.features.feature["image"].bytes_list.value.append(path.read_bytes())
        record.features.feature["label"].int64_list.value.append(int(path.parent.name.split()[1]))
        writer.write(record.SerializeToString())
    writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"filepathTemplate": template, "name": "train", "numBytes": "1", "shardLengths": [str(len(files))]}
    info = {"fileFormat": "array_record", "name": "photos", "version": "1.0.0", "splits": [split]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


if __name__ == "__main__":
    main()
