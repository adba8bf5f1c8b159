"""Images per second of the networks and of timm's, forward and training, in the same run.

    pip install torch torchvision timm && python -m experiments.bench.zoo --batch=8 --rounds=2

Training is the gradient of the cross-entropy, without an optimizer. Both sides run float32 on random images. GMACs are
the multiplications of convolutions and matrix products, counted in the traced program.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[2] / "tests" / "goldens"))
from timm_networks import build

from experiments.bench.timing import best_seconds
from experiments.cost import count_macs
from lfcc_jax import models, runtime
from lfcc_jax.losses import cross_entropy

# The benchmark's teachers and students.
NAMES = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "convnext_tiny",
    "deit_tiny_patch16_224",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_nano_patch4_window7_224",
    "swin_pico_patch4_window7_224",
    "mixer_b16_224",
    "resmlp_12_224",
)
CLASSES, SIZE = 1000, 224


def main() -> None:
    """Prints one row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="names of networks (default: the benchmark's)")
    parser.add_argument("--batch", type=int, default=16, help="number of images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls per program (default: %(default)s)")
    options = parser.parse_args()
    runtime.keep_freed_memory(options.batch * SIZE**2)  # as training and evaluation do; PyTorch's arrays are kept, too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on {device}, "
        f"{torch.get_num_threads()} threads, batch {options.batch}, 224 x 224, float32\n"
    )
    print("| network | parameters | GMACs | compile, s | forward, images/s | timm's | training, images/s | timm's |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.names:
        network = models.create(name, CLASSES)
        variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros(network.image_shape()))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        images = np.random.RandomState(0).uniform(size=(options.batch, SIZE, SIZE, 3)).astype(np.float32)
        macs = count_macs(jax.make_jaxpr(network.apply)(variables, images[:1]).jaxpr) / 1e9
        start = time.perf_counter()
        ours = ours_to_run(network, variables, images)
        compile_seconds = time.perf_counter() - start
        theirs = theirs_to_run(models.full_name(name), images, device)
        best = best_seconds(dict(enumerate((*ours, *theirs))), options.rounds, warm_up=True)
        forward, training, timm_forward, timm_training = (options.batch / best[i] for i in range(4))
        print(
            f"| {name} | {parameters:,} | {macs:.3f} | {compile_seconds:.1f} | {forward:.1f} | {timm_forward:.1f} "
            f"| {training:.1f} | {timm_training:.1f} |",
            flush=True,
        )


def ours_to_run(network, variables, images):
    """Returns compiled functions that run our forward pass and gradient once."""
    labels = jnp.zeros(len(images), jnp.int32)

    def loss(params, rest, images):
        rngs = {"dropout": jax.random.key(0)}
        output, _ = network.apply(rest | {"params": params}, images, True, mutable=["batch_stats"], rngs=rngs)
        return cross_entropy(output.logits, labels).mean()

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    images = jax.device_put(images)
    forward = jax.jit(lambda variables, images: network.apply(variables, images).logits)
    gradient = jax.jit(jax.grad(loss))
    forward, gradient = (
        function.lower(*arguments).compile()
        for function, arguments in ((forward, (variables, images)), (gradient, (variables["params"], rest, images)))
    )
    return (
        lambda: forward(variables, images),
        lambda: gradient(variables["params"], rest, images),
    )


def theirs_to_run(name, images, device):
    """Returns functions that run timm's forward pass and gradient once."""
    network = build(name, CLASSES, SIZE).to(device)
    images = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)
    network = network.to(memory_format=torch.channels_last)

    def forward():
        network.eval()
        with torch.inference_mode():
            return float(network(images).sum())

    def gradient():
        network.train()
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        return loss.item()

    return forward, gradient


if __name__ == "__main__":
    main()
