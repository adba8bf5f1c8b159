"""Flips random bits in the files of checkpoints and saved networks, and times what their digests cost.

    python -m experiments.bench.digests --flips=200 --network=resnet50

Every flip must be found, or leave what is read bit-identical to what was saved (a timestamp, say). The times are of a
state of `--network` with AdamW: its weights, batch statistics, and two moments.
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
    """Returns the state of a run that trains a network with AdamW; its numbers are random."""
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
    """Returns what `Checkpoints.restore` needs to know of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def flip(file: Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def flips_in(directory: Path, count: int, rng: np.random.Generator, outcome: Callable[[], str]) -> collections.Counter:
    """Returns how often each outcome came of a flip in a kind of file; files count by their size, but for one in four.

    Args:
      directory: Its files are damaged, and repaired before the next flip.
      count: Number of flips.
      rng: Where they are.
      outcome: Reads the directory and says what came of it.
    """
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files])
    found = collections.Counter()
    for i in range(count):
        file = files[rng.choice(len(files), p=sizes / sizes.sum() if i % 4 else None)]
        bit = int(rng.integers(8 * file.stat().st_size))
        flip(file, bit)
        kind = "d/*" if file.parent.name == "d" else file.name
        found[kind, outcome()] += 1
        flip(file, bit)
    return found


def flips_in_checkpoints(directory: Path, count: int, rng: np.random.Generator) -> collections.Counter:
    """Returns what came of flips in the newer one of two checkpoints."""
    states = [state_of(models.create(**_arguments(SMALL)), step) for step in (1, 2)]
    with contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints:
        for step, state in enumerate(states, 1):
            checkpoints.save(step, state, {"next_index": 8 * step})
    want = [digests(state) for state in states]

    def outcome() -> str:
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.closing(Checkpoints(directory / "checkpoints")) as checkpoints,
        ):
            state, about = checkpoints.restore(abstract(states[1]), 9)
        step = about["next_index"] // 8 if about.get("next_index") in (8, 16) else None
        identical = step is not None and digests(state) == want[step - 1]
        if step == 1:
            (directory / "damaged" / "2").rename(directory / "checkpoints" / "2")
        if not identical:
            return "NOT FOUND"
        ours = "differs from what was saved" in said.getvalue()
        return "nothing changed" if step == 2 else "found by its digest" if ours else "found by Orbax"

    return flips_in(directory / "checkpoints" / "2", count, rng, outcome)


def flips_in_networks(directory: Path, count: int, rng: np.random.Generator) -> collections.Counter:
    """Returns what came of flips in a saved network."""
    network = models.create(**_arguments(SMALL))
    variables = state_of(network, 3).student
    models.save(directory / "network", variables, SMALL)
    want, made = digests(variables), models.describe(directory / "network")

    def outcome() -> str:
        try:
            found, loaded = models.load(directory / "network")
        except UserError as error:
            ours = "differs from what was saved" in str(error) or "changed after it was written" in str(error)
            return "found by its digest" if ours else "found by Orbax"
        same = found == network and digests(loaded) == want
        same &= {**models.describe(directory / "network"), "digests": 0} == {**made, "digests": 0}
        return "nothing changed" if same else "NOT FOUND"

    return flips_in(directory / "network", count, rng, outcome)


def times(name: str, directory: Path) -> list[list[str]]:
    """Returns rows of a table: what a save and its digests take."""
    state = state_of(models.create(name, 1000, 224), 1)
    size = sum(x.nbytes for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    took = collections.defaultdict(list)
    with contextlib.closing(Checkpoints(directory / "times")) as checkpoints:
        for step in range(1, 6):
            for what, function in (("digests", digests), ("search for NaN", not_finite)):
                began = time.perf_counter()
                function(state)
                took[what].append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.save(step, state, {})
            took["save until training resumes, digests included"].append(time.perf_counter() - began)
            checkpoints.wait()
            took["save until all is on disk, digests included"].append(time.perf_counter() - began)
        began = time.perf_counter()
        checkpoints.restore(abstract(state), 9)
        took["restore, digests included"].append(time.perf_counter() - began)
    return [
        [what, f"{1000 * min(seconds):,.0f}", f"{size / min(seconds) / 1e9:.2f}"] for what, seconds in took.items()
    ] + [["size of the state, MB", f"{size / 1e6:,.0f}", ""]]


def _arguments(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "overrides"} | description["overrides"]


def main() -> int:
    """Prints both tables; returns 1 if a flip was not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="number of flips")
    parser.add_argument("--network", default="resnet50", help="network whose state is timed; none if empty")
    parser.add_argument("--seed", type=int, default=0, help="where the bits are")
    given = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # Orbax's
    rng = np.random.default_rng(given.seed)
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for what, run in (("checkpoint", flips_in_checkpoints), ("network", flips_in_networks)):
            found = run(directory, given.flips // 2, rng)
            outcomes = sorted({outcome for _, outcome in found})
            kinds = sorted({kind for kind, _ in found})
            print(
                table([f"flips in a {what}", *outcomes], [[k, *(found[k, o] for o in outcomes)] for k in kinds]), "\n"
            )
            missed += sum(count for (_, outcome), count in found.items() if outcome == "NOT FOUND")
        if given.network:
            print(table([f"{given.network}, AdamW", "ms", "GB/s"], times(given.network, directory)))
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
