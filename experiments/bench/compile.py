"""Seconds until a training step of configs/imagenet.py can run: traced, compiled, and read from the compilation cache.

    python -m experiments.bench.compile --pairs=swin_tiny:resnet18,resnet50:deit_tiny --methods=kd,lfcc --batch-size=8

Each program is prepared by two processes, one after the other: the first finds an empty compilation cache, the second
what the first has left there. `trace` includes lowering to StableHLO, whose `instructions` are counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

from lfcc_jax.training.report import table

AUGMENTATIONS = ("flip", "recipe")


def main(arguments: list[str] | None = None) -> list[list[str]]:
    """Prints the table, and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--pairs", type=names, default=["swin_tiny:resnet18"], help="teacher:student,...")
    parser.add_argument("--methods", type=names, default=["kd", "lfcc"], help="methods of configs/imagenet.py")
    parser.add_argument("--augmentations", type=names, default=AUGMENTATIONS, help="flip, recipe, or both")
    parser.add_argument("--batch-size", type=int, default=256, help="images per step (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images (default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = []
    for pair in options.pairs:
        for augmentation in options.augmentations:
            for method in options.methods:
                print(f"{pair}, {method}, {augmentation} ...", file=sys.stderr, flush=True)
                settings = vars(options) | {"pair": pair, "augmentation": augmentation, "method": method}
                with tempfile.TemporaryDirectory() as cache:
                    cold, warm = (_in_a_process(settings, cache) for _ in range(2))
                figures = [
                    cold["lower"],
                    cold["compile"],
                    cold["lower"] + cold["compile"],
                    warm["lower"] + warm["compile"],
                ]
                rows.append([pair.replace(":", " -> "), method, augmentation, f"{cold['instructions']:,}"])
                rows[-1] += [f"{seconds:.1f}" for seconds in figures]
    print(f"jax {cold['jax']} on {cold['device']}, batch {options.batch_size}, {options.dtype}, seconds\n")
    titles = ["networks", "method", "augmentation", "instructions", "trace", "compile", "both", "both, from the cache"]
    print(table(titles, rows))
    return rows


def _in_a_process(settings: dict, cache: str) -> dict:
    command = [sys.executable, "-m", "experiments.bench.compile", "--one", json.dumps(settings), cache]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _one(settings: str, cache: str) -> None:
    import jax

    from experiments.bench.steps import JaxStep, Row
    from lfcc_jax import runtime
    from lfcc_jax.training.sharding import create_mesh

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    runtime.collect_garbage_rarely()  # as all commands do
    options = argparse.Namespace(**json.loads(settings), images_at_once=-1)
    step = JaxStep(options, create_mesh(1), Row(options.pair, options.method, "ours"))
    began = time.perf_counter()
    lowered = step.lower()
    traced = time.perf_counter()
    lowered.compile()
    report = {"lower": traced - began, "compile": time.perf_counter() - traced}
    report |= {"instructions": lowered.as_text().count(" = "), "jax": jax.__version__}
    print(json.dumps(report | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(*sys.argv[2:])
    else:
        main()
