"""Records outputs of timm's networks on random weights in float64: `python tests/goldens/record_timm.py`.

Needs `pip install torch torchvision timm`. Takes 90 seconds on 2 CPU cores, and twice as long for the newer networks,
which `python tests/goldens/record_timm.py newer` records alone.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent / "convert"))
from cases import CASES, NEWER, NEWER_FULL, NEWER_WITH_BATCH_NORM, NUM_CLASSES, samples
from random_weights import random_images, random_state_dict
from timm_networks import build, pooled, resample_abs_pos_embed, resize_rel_pos_bias_table, run

from lfcc_jax import models
from lfcc_jax.models.tokens import TokenNetwork, even_taps


def main():
    if sys.argv[1:] != ["newer"]:
        np.savez_compressed(Path(__file__).parent / "timm_resized.npz", **resized())
        golden = {}
        for name, size, train in CASES:
            golden |= outputs(f"{name}@{size}{'/train' if train else ''}", name, size, {}, train)
        np.savez_compressed(Path(__file__).parent / "timm.npz", **golden)
    golden = {}
    for name, size, changed in NEWER + NEWER_FULL:
        golden |= outputs(f"{name}@{size}", name, size, changed)
    for name in NEWER_WITH_BATCH_NORM:
        golden |= outputs(f"{name}@224/train", name, 224, {}, True)
    np.savez_compressed(Path(__file__).parent / "timm_newer.npz", **golden | resized_without_prefix())


def outputs(case, name, size, changed, train=None):
    """Returns logits and samples of the stages, and of the pooled vector if `train` is None."""
    ours = models.create(name, NUM_CLASSES, size, **changed)
    network = build(name, NUM_CLASSES, size, changed)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key: torch.tensor(value) for key, value in random_state_dict(shapes).items()}
    network.load_state_dict(state, strict=True)
    images = (random_images(size).astype(np.float64) - ours.mean) / ours.std
    taps = (ours.taps or even_taps(ours.depth)) if isinstance(ours, TokenNetwork) else None
    logits, maps = run(network, images, taps, bool(train))
    print(case, f"{logits.std():.3f}", flush=True)
    golden = {f"{case}/stage{s}": samples(x).astype(np.float32) for s, x in enumerate(maps, start=1)}
    if train is None:
        golden[f"{case}/pooled"] = samples(pooled(network, images)).astype(np.float32)
    return {f"{case}/logits": logits.astype(np.float32)} | golden


def resized_without_prefix():
    """Returns position embeddings of 37 x 37 patches alone, resized by timm."""
    x = np.random.RandomState(1).standard_normal((1, 37 * 37, 3)).astype(np.float32)
    sizes = {n: resample_abs_pos_embed(torch.tensor(x), (n, n), num_prefix_tokens=0).numpy() for n in (4, 16)}
    return {"positions/old": x} | {f"positions/{n}": y for n, y in sizes.items()}


def resized():
    """Returns position embeddings (class token and n x n patches) and bias tables, resized by timm."""
    random, golden = np.random.RandomState(0), {}
    for old, new in ((14, 10), (14, 24), (4, 7)):
        x = random.standard_normal((1, 1 + old * old, 5)).astype(np.float32)
        y = resample_abs_pos_embed(torch.tensor(x), (new, new), num_prefix_tokens=1)
        golden |= {f"positions/{old}/{new}/old": x, f"positions/{old}/{new}/new": y.numpy()}
    for old, new in ((7, 12), (7, 8), (7, 5), (4, 7)):
        x = random.standard_normal(((2 * old - 1) ** 2, 3)).astype(np.float32)
        y = resize_rel_pos_bias_table(torch.tensor(x), (new, new), ((2 * new - 1) ** 2, 3))
        golden |= {f"bias/{old}/{new}/old": x, f"bias/{old}/{new}/new": y.numpy()}
    return golden


if __name__ == "__main__":
    main()
