"""Records torch's adaptive average pooling: `python tests/goldens/record_box.py`. Needs torch."""

from pathlib import Path

import numpy as np

# Windows that divide the axis, windows that overlap, one window for the whole axis, and the identity.
SIZES = [(4, 2), (7, 4), (14, 4), (14, 7), (56, 7), (56, 4), (10, 3), (13, 5), (9, 1), (6, 6), (7, 2), (28, 5)]

if __name__ == "__main__":
    import torch

    goldens = {"torch_version": np.array(torch.__version__.split("+")[0])}
    for size_in, size_out in SIZES:
        pooled = torch.nn.functional.adaptive_avg_pool1d(torch.eye(size_in, dtype=torch.float64)[None], size_out)[0]
        goldens[f"operator_{size_in}_{size_out}"] = pooled.T.numpy().astype(np.float32)
    x = np.random.default_rng(0).standard_normal((2, 9, 14, 3)).astype(np.float32)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), (4, 4))
    goldens["map_x"], goldens["map_4"] = x, pooled.permute(0, 2, 3, 1).numpy()
    np.savez(Path(__file__).parent / "box_torch.npz", **goldens)
