"""Images per second of the input pipeline and of the device augmentation, compared with torchvision and timm.

    python -m experiments.bench.input --rounds=3

Needs torch, torchvision and timm. The images are scikit-learn's two photographs, as JPEG of 500 x 375 pixels, about
ImageNet's average. Both sides read with the same number of processes. Our augmentation is one program on all cores;
theirs is one Python thread, of which training has one per worker. Compare only rates of one run.
"""

import argparse
import contextlib
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from experiments.bench.timing import best_seconds
from lfcc_jax import data
from lfcc_jax.data.augmentation import create
from lfcc_jax.training.report import table

if not hasattr(torch.ops.torchvision, "nms"):
    # A torchvision built for another torch lacks these operators and fails on import; none is called here.
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

SIZE, CLASSES, POLICY = 224, 1000, "rand-m9-mstd0.5-inc1"


class Photographs(torch.utils.data.Dataset):
    """Encoded photographs: with a transform for torch, without one for the Grain pipeline."""

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: %(default)s)")
    batches = "batches per timing of the pipeline; must exceed the prefetch depth (default: %(default)s)"
    parser.add_argument("--batches", type=int, default=60, help=batches)
    parser.add_argument("--rounds", type=int, default=3, help="timings per row (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.workers)

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
    for _ in range(options.batches):  # fill the prefetch buffers
        next(grain_batches), next(torch_batches)

    strong = {"flip": True, "randaugment": POLICY, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
    rng = np.random.default_rng(0)
    uint8 = rng.integers(0, 256, (options.batch, SIZE, SIZE, 3), np.uint8)
    batch = {"image": jnp.asarray(uint8), "label": jnp.arange(options.batch), "index": jnp.arange(options.batch)}
    augment = jax.jit(create(CLASSES, **strong))
    jax.block_until_ready(augment(jax.random.key(0), batch))
    transform = create_transform(SIZE, is_training=True, auto_augment=POLICY, re_prob=0.0, scale=(1.0, 1.0))
    erase, mixup = RandomErasing(0.25, mode="pixel", device="cpu"), Mixup(0.8, 1.0, num_classes=CLASSES)
    pil_images = [Image.fromarray(image) for image in uint8]

    def transformed(image: Image.Image) -> torch.Tensor:
        while True:
            with contextlib.suppress(ValueError):  # timm's posterize may draw 0 bits, which Pillow rejects
                return transform(image)

    def augment_timm() -> None:
        images = erase(torch.stack([transformed(image) for image in pil_images]))
        mixup(images, torch.arange(options.batch))

    decode = f"decode a JPEG of 500 x 375, random crop to {SIZE}; {options.workers} processes"
    strongly = f"flip, {POLICY}, erasing, mixup and CutMix at {SIZE}"
    keys = iter([jax.random.key(i) for i in range(options.rounds)])
    programs = {
        (decode, "ours"): lambda: [next(grain_batches) for _ in range(options.batches)],
        (decode, "theirs"): lambda: [next(torch_batches) for _ in range(options.batches)],
        (strongly, "ours"): lambda: augment(next(keys), batch),
        (strongly, "theirs"): augment_timm,
    }
    best = best_seconds(programs, options.rounds)
    rows = []
    for name, images in ((decode, count), (strongly, options.batch)):
        ours, theirs = (images / best[name, side] for side in ("ours", "theirs"))
        rows.append([name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    print(
        f"images/s, best of {options.rounds}; batch {options.batch}; jax {jax.__version__} on {jax.default_backend()}, "
        f"torch {torch.__version__}\n"
    )
    print(table(["", "ours", "torchvision, timm", "ours / theirs"], rows))


if __name__ == "__main__":
    main()
