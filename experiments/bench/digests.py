"""Flips random bits in the files of checkpoints and saved networks, and times their digests.

    python -m experiments.bench.digests --flips=200 --network=resnet50

Every flip must be detected, unless what is read is bit-identical to what was saved (in a timestamp, for example). The
timed state is that of `--network` with AdamW: weights, batch statistics and two moments.
"""

import argparse
import collections
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from lfcc_jax import models
from lfcc_jax.digest import digests, not_finite
from lfcc_jax.errors import UserError
from lfcc_jax.training.checkpoint import Checkpoints
from lfcc_jax.training.report import table
from lfcc_jax.training.state import TrainState

SMALL = {"name": "resnet_pico", "num_classes": 10, "image_size": 8, "overrides": {}}


def state_of(network: models.Network, seed: int) -> TrainState:
    """Returns the training state of a network with AdamW, with random values."""
    rng = np.random.default_rng(seed)

    def draw(shapes: Any) -> Any:
        return jax.tree.map(lambda s: jax.device_put(rng.standard_normal(s.shape, np.float32)), shapes)

    variables = draw(network.variable_shapes())
    optimizer = optax.adamw(1e-3).init(variables["params"])
    optimizer = (optimizer[0]._replace(mu=draw(variables["params"]), nu=draw(variables["params"])), *optimizer[1:])
    step = jax.numpy.int32(seed)
    params = {"student": variables.pop("params"), "heads": {}}
    collections = {"student": variables, "heads": {}}
    return TrainState(step, params, collections, optimizer, None, jax.random.key(seed))


def abstract(state: TrainState) -> TrainState:
    """Returns the abstract state for `Checkpoints.restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def flip(file: Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def flips_in(directory: Path, count: int, rng: np.random.Generator, outcome: Callable[[], str]) -> collections.Counter:
    """Returns the number of flips by (kind of file, outcome).

    Three of four flips draw a bit uniformly over all files, the fourth draws the file uniformly first.

    Args:
      directory: Directory whose files are damaged one at a time and restored.
      count: Number of flips.
      rng: Draws the positions.
      outcome: Reads the damaged directory and returns the outcome.
    """
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files])
    counts = collections.Counter()
    for i in range(count):
        file = files[rng.choice(len(files), p=sizes / sizes.sum() if i % 4 else None)]
        bit = int(rng.integers(8 * file.stat().st_size))
        flip(file, bit)
        kind = "d/*" if file.parent.name == "d" else file.name
        counts[kind, outcome()] += 1
        flip(file, bit)
    return counts


def flips_in_checkpoints(directory: Path, count: int, rng: np.random.Generator) -> collections.Counter:
    """Returns the outcomes of flips in the newer of two checkpoints."""
    states = [state_of(models.create(**_arguments(SMALL)), step) for step in (1, 2)]
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        for step, state in enumerate(states, 1):
            checkpoints.save(step, state, {"next_index": 8 * step})
    expected = [digests(state) for state in states]

    def outcome() -> str:
        printed = io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints,
        ):
            state, about = checkpoints.restore(abstract(states[1]), 9)
        step = about["next_index"] // 8 if about.get("next_index") in (8, 16) else None
        identical = step is not None and digests(state) == expected[step - 1]
        if step == 1:
            (directory / "damaged" / "2").rename(directory / "checkpoints" / "2")
        if not identical:
            return "MISSED"
        by_digest = "differs from what was saved" in printed.getvalue()
        return "no effect" if step == 2 else "detected by its digest" if by_digest else "detected by Orbax"

    return flips_in(directory / "checkpoints" / "2", count, rng, outcome)


def flips_in_networks(directory: Path, count: int, rng: np.random.Generator) -> collections.Counter:
    """Returns the outcomes of flips in a saved network."""
    network = models.create(**_arguments(SMALL))
    variables = state_of(network, 3).student
    models.save(directory / "network", variables, SMALL)
    expected, description = digests(variables), models.describe(directory / "network")

    def outcome() -> str:
        try:
            loaded, loaded_variables = models.load(directory / "network")
        except UserError as error:
            by_digest = "differs from what was saved" in str(error) or "changed after it was written" in str(error)
            return "detected by its digest" if by_digest else "detected by Orbax"
        same = loaded == network and digests(loaded_variables) == expected
        same &= {**models.describe(directory / "network"), "digests": 0} == {**description, "digests": 0}
        return "no effect" if same else "MISSED"

    return flips_in(directory / "network", count, rng, outcome)


def times(name: str, directory: Path) -> list[list[str]]:
    """Returns table rows with the times of a save, a restore and their digests."""
    state = state_of(models.create(name, 1000, 224), 1)
    size = sum(x.nbytes for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    seconds = collections.defaultdict(list)
    with contextlib.closing(Checkpoints(directory / "times")) as checkpoints:
        for step in range(1, 6):
            for label, function in (("digests", digests), ("search for NaN", not_finite)):
                began = time.perf_counter()
                function(state)
                seconds[label].append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.save(step, state, {})
            seconds["save until training resumes, digests included"].append(time.perf_counter() - began)
            checkpoints.wait()
            seconds["save until all is on disk, digests included"].append(time.perf_counter() - began)
        began = time.perf_counter()
        checkpoints.restore(abstract(state), 9)
        seconds["restore, digests included"].append(time.perf_counter() - began)
    return [
        [label, f"{1000 * min(values):,.0f}", f"{size / min(values) / 1e9:.2f}"] for label, values in seconds.items()
    ] + [["size of the state, MB", f"{size / 1e6:,.0f}", ""]]


def _arguments(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "overrides"} | description["overrides"]


def main() -> int:
    """Prints the tables and returns 1 if a flip was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="number of flips (default: %(default)s)")
    parser.add_argument(
        "--network", default="resnet50", help="network whose state is timed; empty for none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the positions (default: %(default)s)")
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # Orbax's
    rng = np.random.default_rng(options.seed)
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for kind, run in (("checkpoint", flips_in_checkpoints), ("network", flips_in_networks)):
            counts = run(directory, options.flips // 2, rng)
            outcomes = sorted({outcome for _, outcome in counts})
            files = sorted({file for file, _ in counts})
            print(
                table([f"flips in a {kind}", *outcomes], [[f, *(counts[f, o] for o in outcomes)] for f in files]), "\n"
            )
            missed += sum(count for (_, outcome), count in counts.items() if outcome == "MISSED")
        if options.network:
            print(table([f"{options.network}, AdamW", "ms", "GB/s"], times(options.network, directory)))
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
