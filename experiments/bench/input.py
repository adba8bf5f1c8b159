"""Images a second of the input pipeline and of the augmentation on the device, beside torchvision's and timm's.

    python -m experiments.bench.input

Needs torch, torchvision and timm. The photographs are scikit-learn's two, as JPEG of 500 x 375 pixels, about ImageNet's
average. Ours and theirs take turns. Reading is by as many processes of each; the augmentation is one program on all
cores here, and one thread of Python there, of which training would have one in each worker. Times of one run are
comparable with one another alone.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from lfcc_jax import data
from lfcc_jax.data.augmentation import create
from lfcc_jax.training.report import table

if not hasattr(torch.ops.torchvision, "nms"):
    # torchvision built for another torch lacks operators that nothing here calls, and fails on import.
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

SIZE, CLASSES, POLICY = 224, 1000, "rand-m9-mstd0.5-inc1"


class Photographs(torch.utils.data.Dataset):
    """The photographs as bytes: for torch with a transform, for the Grain pipeline without one."""

    def __init__(self, count: int, transform: Any = None):
        self._bytes = []
        for image in load_sample_images().images:
            file = io.BytesIO()
            Image.fromarray(image).resize((500, 375)).save(file, "JPEG", quality=90)
            self._bytes.append(file.getvalue())
        self._count, self._transform = count, transform

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if index >= self._count:
            raise IndexError(index)
        encoded = self._bytes[index % 2]
        if self._transform is None:
            return {"image": encoded, "label": index % CLASSES}
        return self._transform(Image.open(io.BytesIO(encoded)).convert("RGB")), index % CLASSES


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=60, help="timed at once; many more than are made ahead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    rates: dict[str, dict[str, float]] = {}

    def record(what: str, whose: str, images: int, run: Callable[[], None]) -> None:
        began = time.perf_counter()
        run()
        rate = images / (time.perf_counter() - began)
        rates.setdefault(what, {})[whose] = max(rate, rates.get(what, {}).get(whose, 0.0))

    count = options.batch * options.batches
    crop = transforms.Compose(
        [RandomResizedCropAndInterpolation(SIZE, interpolation="random"), transforms.PILToTensor()]
    )
    loader = torch.utils.data.DataLoader(
        Photographs(10 * count, crop), options.batch, num_workers=options.workers, persistent_workers=True
    )
    source = data.Source(Photographs(10 * count), CLASSES, 0, 3)
    grain_batches = data.train_batches(source, options.batch, seed=0, image_size=SIZE, workers=options.workers)
    torch_batches = iter(loader)
    for _ in range(options.batches):  # both fill what they prefetch
        next(grain_batches), next(torch_batches)

    strong = {"flip": True, "randaugment": POLICY, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
    rng = np.random.default_rng(0)
    uint8 = rng.integers(0, 256, (options.batch, SIZE, SIZE, 3), np.uint8)
    batch = {"image": jnp.asarray(uint8), "label": jnp.arange(options.batch), "index": jnp.arange(options.batch)}
    augment = jax.jit(create(CLASSES, **strong))
    jax.block_until_ready(augment(jax.random.key(0), batch))
    transform = create_transform(SIZE, is_training=True, auto_augment=POLICY, re_prob=0.0, scale=(1.0, 1.0))
    erase, mixup = RandomErasing(0.25, mode="pixel", device="cpu"), Mixup(0.8, 1.0, num_classes=CLASSES)
    pictures = [Image.fromarray(image) for image in uint8]

    def transformed(picture: Image.Image) -> torch.Tensor:
        while True:
            with contextlib.suppress(ValueError):  # timm's posterize may ask for 0 bits, which Pillow refuses
                return transform(picture)

    def theirs() -> None:
        images = erase(torch.stack([transformed(picture) for picture in pictures]))
        mixup(images, torch.arange(options.batch))

    for step in range(options.rounds):
        decode = f"decode a JPEG of 500 x 375, random crop to {SIZE}; {options.workers} processes"
        record(decode, "ours", count, lambda: [next(grain_batches) for _ in range(options.batches)])
        record(decode, "theirs", count, lambda: [next(torch_batches) for _ in range(options.batches)])
        strongly = f"flip, {POLICY}, erasing, mixup and CutMix at {SIZE}"
        key = jax.random.key(step)
        record(strongly, "ours", options.batch, lambda key=key: jax.block_until_ready(augment(key, batch)))
        record(strongly, "theirs", options.batch, theirs)
    rows = [
        [what, f"{rate['ours']:.0f}", f"{rate['theirs']:.0f}", f"{rate['ours'] / rate['theirs']:.2f}"]
        for what, rate in rates.items()
    ]
    print(
        f"images/s, best of {options.rounds}; batch {options.batch}; jax {jax.__version__} on {jax.default_backend()}, "
        f"torch {torch.__version__}\n"
    )
    print(table(["", "ours", "torchvision, timm", "ours / theirs"], rows))


if __name__ == "__main__":
    main()
