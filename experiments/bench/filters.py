"""Times the low-pass filters as matrix products, FFTs and convolutions, and all grids of a stage in one pass.

    python -m experiments.bench.filters --rounds=5

All maps are float32. Compare only times of one run; the tables therefore show ratios. The floor is the time to read the
map and write a result of the same size once.
"""

import argparse
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import best_seconds
from lfcc_jax import compact_grids, filters, low_pass

STAGES = {  # height (= width) and channels
    "ResNet-18 stage1": (56, 64),
    "ResNet-18 stage2": (28, 128),
    "ResNet-18 stage3": (14, 256),
    "ResNet-18 stage4": (7, 512),
    "Swin-T stage1": (56, 96),
    "Swin-T stage2": (28, 192),
    "Swin-T stage3": (14, 384),
    "Swin-T stage4": (7, 768),
    "ViT-S stage1-4": (14, 384),
}
GRIDS = (1, 2, 4)
CUTOFF = 1 / 8
# The cheapest kind for each implementation: no mirrored boundary for the FFT, few taps for the convolution.
CHEAPEST = {"matmul": "ideal", "fft": "ideal", "conv": "box"}


def stacked(x: jax.Array) -> list[jax.Array]:
    """Returns all grids from one product per axis, with the rows of all operators stacked."""
    rows, columns = (np.concatenate([filters.operator("box", n, g) for g in GRIDS]) for n in x.shape[1:3])
    y = filters.apply_operators(rows, columns, x)
    ends = np.cumsum((0, *GRIDS))
    return [y[:, a:b, a:b] for a, b in itertools.pairwise(ends)]


def gradient(function: Callable) -> Callable:
    """Returns the gradient of a filter's energy, which runs the forward and the backward pass."""
    return jax.grad(lambda x: sum(jnp.sum(jnp.square(y)) for y in jax.tree.leaves(function(x))))


def measure(functions: dict, x: jax.Array, rounds: int) -> dict:
    """Returns milliseconds (best of `rounds`), GFLOP and MiB accessed of each function."""
    programs = {name: jax.jit(function).lower(x).compile() for name, function in functions.items()}
    best = best_seconds({name: functools.partial(program, x) for name, program in programs.items()}, rounds)
    cost = {name: program.cost_analysis() for name, program in programs.items()}
    return {n: (1e3 * best[n], cost[n].get("flops", 0) / 1e9, cost[n]["bytes accessed"] / 2**20) for n in programs}


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="number of images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls per program (default: %(default)s)")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, batch {options.batch}, best of {options.rounds} rounds\n")
    print(
        "| same size out | pass | floor ms | matmul ms | fft / matmul | conv / matmul | GFLOP m, f, c | MiB m, f, c |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    maps = {}
    for stage, (size, channels) in STAGES.items():
        key = jax.random.key(0)
        maps[stage] = x = jax.random.normal(key, (options.batch, size, size, channels))
        for direction, wrap in (("forward", lambda f: f), ("forward + backward", gradient)):
            functions = {
                name: wrap(lambda x, name=name, kind=kind: low_pass(x, kind, CUTOFF, implementation=name))
                for name, kind in CHEAPEST.items()
            }
            result = measure({"floor": lambda x: x + 1, **functions}, x, options.rounds)
            floor = result.pop("floor")[0]
            ms, flops, mib = ([column[i] for column in result.values()] for i in range(3))
            ratios = f"{ms[1] / ms[0]:.2f} | {ms[2] / ms[0]:.2f}"
            costs = f"{', '.join(f'{f:.2f}' for f in flops)} | {', '.join(f'{m:.0f}' for m in mib)}"
            shape = f"{size}x{size}x{channels}"
            print(f"| {stage} {shape} | {direction} | {floor:.1f} | {ms[0]:.1f} | {ratios} | {costs} |", flush=True)

    print(f"\n| grids {GRIDS} | pass | one by one ms | stacked rows | one Kronecker product | compact_grids |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stage, x in maps.items():
        for direction, wrap in (("forward", lambda f: f), ("forward + backward", gradient)):
            functions = {
                "one by one": lambda x: [
                    filters.apply_operators(*(filters.operator("box", n, g) for n in x.shape[1:3]), x) for g in GRIDS
                ],
                "stacked rows": stacked,
                "one Kronecker product": lambda x: filters.apply_operator_pairs(
                    [tuple(filters.operator("box", n, g) for n in x.shape[1:3]) for g in GRIDS], x
                ),
                "compact_grids": lambda x: compact_grids(x, "box", GRIDS),
            }
            result = measure({name: wrap(f) for name, f in functions.items()}, x, options.rounds)
            ms = [column[0] for column in result.values()]
            ratios = " | ".join(f"{m / ms[0]:.2f}" for m in ms[1:])
            print(f"| {stage} | {direction} | {ms[0]:.1f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
