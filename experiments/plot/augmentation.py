"""Plots every augmentation into docs/augmentation.jpg: `python -m experiments.plot.augmentation`.

The two photographs are from scikit-learn: China by danielbuechele, Flower by vultilion, flickr.com, CC BY 2.0.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from sklearn.datasets import load_sample_images

from lfcc_jax.data.augmentation import create
from lfcc_jax.data.augmentation.operations import NAMES, SIGNED, apply, change
from lfcc_jax.data.augmentation.policy import arguments

SIDE = 112
FILL = jnp.array([124.0, 116.0, 104.0])


def main() -> None:
    """Writes docs/augmentation.jpg."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    china, flower = (np.asarray(image)[:420, 60:480] for image in load_sample_images().images)
    images = jax.image.resize(jnp.stack([china, flower]).astype(jnp.float32), (2, SIDE, SIDE, 3), "linear")
    images = jnp.clip(jnp.round(images), 0, 255)
    augmented = jax.jit(lambda x, operation, argument: apply(x, change(x, operation, argument), FILL) / 255)
    panels = [("as it is", images[0] / 255), ("as it is", images[1] / 255)]
    for index, name in enumerate(NAMES):
        values = [float(arguments(jnp.float32(9), jnp.array(negative))[index]) for negative in (True, False)]
        shown = zip(values, (0, 1), strict=True) if name in SIGNED else [(values[1], 0)]
        for value, image in shown:
            text = "" if name in ("autocontrast", "equalize", "invert") else f" {value:.3g}"
            panels.append((name + text, augmented(images[image], jnp.int32(index), jnp.float32(value))))
    batch = {"image": images.astype(jnp.uint8), "label": jnp.arange(2), "index": jnp.arange(2)}
    for text, settings in (
        ("random resized crop", {"size": SIDE}),
        ("flip", {"flip": True}),
        ("padded crop", {"padding": 20}),
        ("RandAugment", {"randaugment": "rand-m9-mstd0.5-inc1"}),
        ("color jitter 0.4", {"color_jitter": 0.4}),
        ("erasing", {"erasing": 1.0}),
        ("mixup", {"mixup": 0.8}),
        ("cutmix", {"cutmix": 1.0}),
    ):
        augment = jax.jit(create(2, **settings))
        panels += [(text, augment(jax.random.key(seed), batch)["image"][seed % 2]) for seed in (5, 6)]

    columns = 9
    rows = -(-len(panels) // columns)
    figure = matplotlib.figure.Figure(figsize=(1.25 * columns, 1.45 * rows), layout="constrained")
    for axis in figure.subplots(rows, columns).ravel():
        axis.axis("off")
    for axis, (text, image) in zip(figure.axes, panels, strict=False):
        axis.imshow(np.clip(image, 0, 1))
        axis.set_title(text, fontsize=7)
    path = Path(__file__).parents[2] / "docs" / "augmentation.jpg"
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
