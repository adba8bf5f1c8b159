"""Times the kernels of training steps of configs/imagenet.py on an NVIDIA GPU, by the operation that they compute.

    python -m experiments.gpu.trace --pairs=resnet50:deit_tiny_patch16_224 --methods=kd,lfcc --list=30

The programs are compiled without CUDA graphs, in which kernels have no names, so a step takes up to 3% longer than in
training. Compare a kernel's time with that of reading and writing its arrays, which `experiments.gpu.kernels` counts:
what takes several times as long is worth a look.
"""

import argparse
import collections
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.bench import steps
from lfcc_jax.errors import UserError
from lfcc_jax.training.report import table
from lfcc_jax.training.sharding import create_mesh

_WITHOUT_GRAPHS = {"xla_gpu_graph_min_graph_size": 1_000_000}
_STEPS = 3  # traced


def main() -> None:
    """Prints a table of all steps, and their slowest operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps.add_options(parser)
    parser.add_argument("--list", type=int, default=30, help="number of operations to list (default: %(default)s)")
    options = parser.parse_args()
    try:
        print(_tables(options))
    except UserError as error:
        sys.exit(f"error: {error}")


def _tables(options: argparse.Namespace) -> str:
    if jax.default_backend() != "gpu":
        raise UserError(f"a GPU is required, jax has {jax.devices()[0].device_kind}")
    mesh, rows, lists = create_mesh(), [], []
    batch = steps.random_batch(options, mesh)
    for pair in options.pairs:
        for method in options.methods:
            step = steps.JaxStep(options, mesh, steps.Row(pair, method, "lfcc_jax"))
            step.lower()
            step.compile(_WITHOUT_GRAPHS)
            step.run(batch, _STEPS)
            milliseconds = 1e3 * min(step.run(batch, 20) for _ in range(3))
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    step.run(batch, _STEPS)
                found = list(events(Path(folder)))
            total, count = sum(time for *_, time in found) / _STEPS, len(found) / _STEPS
            name = pair.replace(":", " -> ")
            rows.append([name, method, f"{milliseconds:.2f}", f"{total:.2f}", f"{count:.0f}"])
            lists.append(f"{name}, {method}\n\n{slowest(found, step.program_text(), options.list)}")
            print(f"{name}, {method}: {milliseconds:.2f} ms", file=sys.stderr, flush=True)
    header = ["teacher -> student", "method", "ms a step", "ms in kernels", "kernels, copies, fills"]
    return "\n\n".join([f"{jax.devices()[0].device_kind}, jax {jax.__version__}", table(header, rows), *lists])


def events(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Yields instruction, kernel and milliseconds of what a profile in `folder` has on the first GPU."""
    (path,) = folder.glob("**/*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))  # its planes must not outlive it
    for plane in profile.planes:
        for line in plane.lines if plane.name == "/device:GPU:0" else ():
            if line.name.startswith("Stream"):
                for event in line.events:
                    yield dict(event.stats).get("hlo_op", ""), event.name, event.duration_ns / 1e6


def slowest(found: list[tuple[str, str, float]], program: str, count: int) -> str:
    """Returns a table of the operations that take longest.

    Args:
      found: Instruction, kernel and milliseconds of each event, over `_STEPS` steps; see `events`.
      program: The compiled program, as `jax.stages.Compiled.as_text` prints it.
      count: Number of rows.
    """
    instructions = {}
    for line in program.splitlines():
        if match := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\S+)", line):
            operation = re.search(r'op_name="([^"]*)"', line)
            results = re.sub(r"\{[^}]*\}", "", match[2]).strip("(,")
            instructions.setdefault(match[1], (results, re.sub(r"\d+", "#", operation[1]) if operation else ""))
    times, events_of, first = collections.Counter(), collections.Counter(), {}
    for instruction, kernel, time in found:
        results, operation = instructions.get(instruction, ("", kernel))
        key = re.sub(r"[.\d]+$", "", instruction), operation
        times[key] += time
        events_of[key] += 1
        first.setdefault(key, results)
    rows = [
        [f"{time / _STEPS:.3f}", f"{events_of[key] / _STEPS:.0f}", key[0], first[key], key[1][-90:]]
        for key, time in times.most_common(count)
    ]
    return table(["ms", "kernels", "kind", "results of the first", "operation"], rows)


if __name__ == "__main__":
    main()
