"""Random weights that depend only on tensor names and shapes, so that goldens do not have to store them."""

import re
import zlib

import numpy as np


def random_state_dict(shapes):
    """Returns float32 arrays of `shapes`, by timm's names, at scales at which all parts of a network matter."""
    return {name: _tensor(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _tensor(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()))  # a frozen generator
    x = random.standard_normal(int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        x = 0.5 + random.uniform(size=shape)
    elif name.endswith(("gamma", "ls1", "ls2", "gamma_1", "gamma_2")):
        x = 0.5 + 0.1 * x
    elif name.endswith("relative_position_bias_table"):
        x = 0.5 * x
    elif re.match(r"pos_embed|cls_token|patch_embed\.proj|stem\.0|stem\.proj", name):
        # Small, so that the epsilon of the first norm has an effect.
        x = 0.03 * x / np.sqrt(np.prod(shape[1:]) if x.ndim == 4 else 1)
    elif name.endswith(("alpha", "weight")) and max(shape) == x.size:
        # Small residual branches keep deep networks in training mode from amplifying rounding errors.
        x = (0.3 if re.search(r"\.bn[23]\.", name) else 1.0) * (1 + 0.2 * x)
    elif name.endswith("weight"):
        x = x / np.sqrt(np.prod(shape[1:]))
    elif not name.endswith("latent"):
        x = 0.1 * x
    return x.astype(np.float32)


def random_images(size, batch=2):
    """Returns `[batch, size, size, 3]` float32 in [0, 1]: coarse patches and noise."""
    random = np.random.RandomState(size)
    coarse = random.uniform(size=(batch, -(-size // 16), -(-size // 16), 3))
    coarse = coarse.repeat(16, 1).repeat(16, 2)[:, :size, :size]
    return (0.7 * coarse + 0.3 * random.uniform(size=(batch, size, size, 3))).astype(np.float32)
