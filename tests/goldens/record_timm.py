"""Records outputs of timm's networks on random weights in float64: `python tests/goldens/record_timm.py`.

Needs `pip install torch torchvision timm`. Takes 90 seconds on 2 CPU cores.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent / "convert"))
from cases import CASES, NUM_CLASSES, samples
from random_weights import random_images, random_state_dict
from timm_networks import build, resample_abs_pos_embed, resize_rel_pos_bias_table, run

from lfcc_jax import models
from lfcc_jax.models.tokens import TokenNetwork, even_taps


def main():
    np.savez_compressed(Path(__file__).parent / "timm_resized.npz", **resized())
    golden = {}
    for name, size, train in CASES:
        ours = models.create(name, NUM_CLASSES, size)
        network = build(name, NUM_CLASSES, size)
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        state = {key: torch.tensor(value) for key, value in random_state_dict(shapes).items()}
        network.load_state_dict(state, strict=True)
        images = (random_images(size).astype(np.float64) - ours.mean) / ours.std
        taps = (ours.taps or even_taps(ours.depth)) if isinstance(ours, TokenNetwork) else None
        logits, maps = run(network, images, taps, train)
        case = f"{name}@{size}{'/train' if train else ''}"
        golden[f"{case}/logits"] = logits.astype(np.float32)
        for s, x in enumerate(maps, start=1):
            golden[f"{case}/stage{s}"] = samples(x).astype(np.float32)
        print(case, f"{logits.std():.3f}", flush=True)
    np.savez_compressed(Path(__file__).parent / "timm.npz", **golden)


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
