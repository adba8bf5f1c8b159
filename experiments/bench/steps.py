"""Times the real training steps of configs/imagenet.py, next to PyTorch's where torch and timm are installed.

    python -m experiments.bench.steps --pairs=swin_tiny:resnet18,resnet50:deit_tiny_patch16_224 --methods=kd,lfcc,ofa \
        --batch-size=256 --dtype=bfloat16 --minutes=4 --out=steps.json

Random images are already on the device, so the input pipeline is not measured. All programs are compiled first and then
take turns, so that a machine that slows down slows all of them. FLOPs and bytes are XLA's count for one device; its
ceilings, a bfloat16 matrix product and a copy, are measured in the same process. The PyTorch rows train timm's networks
by KD with the same optimizer, autocast and channels_last; their only augmentation is the flip, so compare them with
`--augmentation=flip`. Programs that do not fit into `--minutes` are skipped and listed.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Leave memory to PyTorch on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from configs import imagenet
from experiments.bench.timing import best_seconds
from experiments.cost import count_macs
from experiments.tpu.memory import hbm_bytes
from lfcc_jax import models, runtime
from lfcc_jax.arguments import checked_arguments
from lfcc_jax.data import Images, augmentation
from lfcc_jax.errors import UserError
from lfcc_jax.training.config import as_dict, read_config
from lfcc_jax.training.distillation import build
from lfcc_jax.training.feeds import batch_shapes
from lfcc_jax.training.parts import check_parts
from lfcc_jax.training.report import table
from lfcc_jax.training.sharding import batch_sharding, check_batch_size, create_mesh, replicated

CLASSES, EXAMPLES = 1000, 1_281_167  # of ImageNet-1K
ROUNDS = 5
TURN_SECONDS = 0.8
# Fractions of the budget by which XLA, and then torch, must have compiled.
XLA_UNTIL, TORCH_UNTIL = 0.65, 0.85


@dataclasses.dataclass
class Row:
    """One program and its measurements."""

    pair: str
    method: str
    engine: str
    seconds: list[float] = dataclasses.field(default_factory=list)  # per step, one entry per round
    compile_seconds: float = 0.0
    temporary_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None

    @property
    def best(self) -> float:
        """Seconds per step in the fastest round."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest round over fastest, minus 1."""
        return max(self.seconds) / self.best - 1


class JaxStep:
    """The training step of one config, compiled, with its state on the device."""

    def __init__(self, options: argparse.Namespace, mesh: jax.sharding.Mesh, row: Row):
        self.row, self._mesh = row, mesh
        self._batch_size, self._size = options.batch_size, options.image_size
        run = read_config(run_config(options, row.pair, row.method))
        self._distillation = build(run, Images(CLASSES, self._size, 3, EXAMPLES))
        settings = run.data["augmentation"] if options.augmentation == "recipe" else {"flip": True}
        settings = {"num_classes": CLASSES, "size": 0} | settings
        self._augment = augmentation.create(
            **checked_arguments(augmentation.create, settings, "config.data.augmentation")
        )

    def lower(self) -> jax.stages.Lowered:
        """Traces the step, and returns the program."""
        shape = self._size, self._size, 3
        batch = batch_shapes(self._mesh, self._batch_size, shape)
        step = self._distillation.train_step(self._mesh, self._augment)
        self._traced = step.trace(*self._distillation.step_arguments(self._mesh), batch)
        self._lowered = self._traced.lower()
        return self._lowered

    def compile(self, compiler_options: dict[str, Any] | None = None) -> None:
        """Compiles the step and initializes the networks. Runs in a thread."""
        began = time.monotonic()
        self._program = self._lowered.compile(compiler_options)
        self.row.compile_seconds = time.monotonic() - began
        cost, memory = self._program.cost_analysis(), self._program.memory_analysis()
        self.row.flops, self.row.bytes_accessed = cost.get("flops"), cost.get("bytes accessed")
        platform = self._mesh.devices.flat[0].platform
        if platform == "tpu" or self._distillation.images_at_once > 0:  # XLA counts the body of a loop once
            self.row.flops = 2 * count_macs(self._traced.jaxpr.jaxpr, platform) / self._mesh.size
            self.row.bytes_accessed = hbm_bytes(self._program.as_text()) if platform == "tpu" else None
        self.row.temporary_bytes = memory.temp_size_in_bytes
        # Initialization runs once; unoptimized code compiles faster.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        state = jax.jit(self._distillation.init, compiler_options=options)(jax.random.key(0))
        self._state = jax.device_put(state, replicated(self._mesh))
        self._teachers = {}
        for name, network in self._distillation.teachers.items():
            images = jnp.zeros(network.image_shape())
            variables = jax.jit(network.init, compiler_options=options)(jax.random.key(1), images)
            self._teachers[name] = jax.device_put(variables, replicated(self._mesh))

    def program_text(self) -> str:
        """Returns the compiled program."""
        return self._program.as_text()

    def run(self, batch: dict[str, jax.Array], steps: int) -> float:
        """Takes some steps and returns seconds per step."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._program(self._state, self._teachers, batch)
        jax.block_until_ready((self._state, metrics))
        return (time.perf_counter() - began) / steps


class TorchStep:
    """A process that trains timm's networks by KD; see `experiments.bench.torch_steps`."""

    def __init__(self, options: argparse.Namespace, row: Row):
        self.row = row
        teacher, student = map(models.full_name, row.pair.split(":"))
        config = run_config(options, row.pair, "kd")
        settings = {
            "teacher": teacher,
            "student": student,
            "compiled": row.engine == "torch.compile",
            "optimizer": config["optimizer"] | {"learning_rate": 1e-4},
            "ema_decay": config["ema_decay"],
            **{key: getattr(options, key) for key in ("batch_size", "image_size", "dtype")},
        }
        command = [sys.executable, "-m", "experiments.bench.torch_steps", json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        # An unread pipe would block the process once it is full.
        threading.Thread(target=lambda: self._errors.extend(self._process.stderr), daemon=True).start()

    def ask(self, steps: int) -> None:
        """Requests `steps` steps. The first request must be 0, which compiles."""
        with contextlib.suppress(BrokenPipeError):  # `answer` reports why the process ended
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """Returns the measurement of the process.

        Raises:
          UserError: if the process failed or does not answer within `timeout` seconds.
        """
        try:
            answer = self._answers.get(timeout=max(timeout, 0.1))
        except queue.Empty:
            raise UserError("out of time") from None
        if not answer:
            lines = [line.strip() for line in self._errors if line.strip()]
            raise UserError(lines[-1][:160] if lines else f"exit status {self._process.poll()}")
        return json.loads(answer)

    def run(self, _: Any, steps: int) -> float:
        """Takes some steps and returns seconds per step."""
        self.ask(steps)
        return self.answer(60.0 + 60.0 * steps)["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        for line in self._process.stdout:
            if line.startswith("{"):
                self._answers.put(line)
        self._process.wait()
        self._answers.put("")


def run_config(options: argparse.Namespace, pair: str, method: str) -> dict[str, Any]:
    """Returns a config of configs/imagenet.py with this benchmark's options."""
    teacher, student = pair.split(":")
    config = as_dict(imagenet.get_config(f"teacher={teacher},student={student},method={method}"))
    return config | {key: getattr(options, key) for key in ("batch_size", "dtype", "images_at_once")}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compiles and times all programs and returns the report."""
    began = time.monotonic()

    def left(until: float = 1.0) -> float:
        return began + until * 60 * options.minutes - time.monotonic()

    runtime.keep_freed_memory(options.batch_size * 224**2)  # as a run does
    mesh = create_mesh()
    check_batch_size(options.batch_size, mesh, "--batch-size")
    check_parts(options.images_at_once, options.batch_size, mesh, "--images-at-once")
    jax_steps = [
        JaxStep(options, mesh, Row(pair, method, "lfcc_jax")) for method in options.methods for pair in options.pairs
    ]
    skipped: dict[str, str] = {}
    torch_steps = []
    if all(importlib.util.find_spec(name) for name in ("torch", "timm")):
        engines = ("torch eager", "torch.compile")
        rows = [Row(pair, "kd", engine) for engine in engines for pair in options.pairs]
        torch_steps = [TorchStep(options, row) for row in rows]  # imports torch meanwhile
    else:
        skipped["torch"] = "torch and timm are not installed"

    # Each uses several cores. More at once would all be ready late.
    pool = concurrent.futures.ThreadPoolExecutor(max(1, os.cpu_count() // 4))
    compiling = {}
    try:
        for step in jax_steps:
            if left(XLA_UNTIL) <= 0:
                skipped[_name(step.row)] = "not lowered in time"
                continue
            step.lower()
            compiling[step] = pool.submit(step.compile)
        concurrent.futures.wait(compiling.values(), timeout=max(left(XLA_UNTIL), 0.1))
        ready = []
        for step, future in compiling.items():
            if not future.done():
                future.cancel()
                skipped[_name(step.row)] = "not compiled in time"
            elif error := future.exception():
                skipped[_name(step.row)] = _one_line(error)
            else:
                ready.append(step)
        # Only now: while it compiles, XLA times candidate kernels on the device, which must be idle.
        for step in torch_steps:
            step.ask(0)
        for step in torch_steps:
            try:
                step.row.compile_seconds = step.answer(left(TORCH_UNTIL))["seconds"]
                ready.append(step)
            except UserError as error:
                skipped[_name(step.row)] = str(error)
                step.close()

        ceilings = measure_ceilings()
        rows = take_turns(ready, random_batch(options, mesh), left, skipped)
    finally:
        for step in torch_steps:
            step.close()
        pool.shutdown(wait=False, cancel_futures=True)
    unfinished = any(not future.done() for future in compiling.values())
    return _report(options, rows, ceilings, skipped, time.monotonic() - began) | {"unfinished": unfinished}


def random_batch(options: argparse.Namespace, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Returns random images and labels on the devices."""
    rng, count, size = np.random.default_rng(0), options.batch_size, options.image_size
    batch = {
        "image": rng.integers(0, 256, (count, size, size, 3), np.uint8),
        "label": rng.integers(0, CLASSES, count, np.int32),
        "index": np.arange(count, dtype=np.int32),
    }
    return jax.device_put(batch, batch_sharding(mesh))


def measure_ceilings() -> dict[str, float]:
    """Returns FLOP/s of a bfloat16 matrix product and bytes/s of a copy on one device, each the best of five."""
    small = jax.default_backend() == "cpu"
    n, length = (512, 1 << 22) if small else (8192, 1 << 29)
    square = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    vector = jnp.ones((length,), jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    calls = 5

    def repeat(function: Any, x: jax.Array) -> jax.Array:
        for _ in range(calls):
            y = function(x)
        return y

    programs = {"product": lambda: repeat(product, square), "copy": lambda: repeat(copy, vector)}
    best = best_seconds(programs, 5, warm_up=True)
    return {
        "matmul_flops_per_second": calls * 2 * n**3 / best["product"],
        "copy_bytes_per_second": calls * 2 * vector.nbytes / best["copy"],
    }


def take_turns(steps: Sequence[Any], batch: dict[str, jax.Array], left: Any, skipped: dict[str, str]) -> list[Row]:
    """Times all programs in turns for `ROUNDS` rounds or until the budget is used up, and returns the timed rows."""
    counts = {}
    for step in steps:
        if counts and left() <= 0:
            skipped[_name(step.row)] = "not timed in time"
            continue
        try:
            step.run(batch, 1)
            counts[step] = max(1, min(50, round(TURN_SECONDS / step.run(batch, 1))))
        except Exception as error:  # one program may be out of memory
            skipped[_name(step.row)] = _one_line(error)
    for _ in range(ROUNDS):
        began = time.monotonic()
        for step, count in list(counts.items()):
            try:
                step.row.seconds.append(step.run(batch, count))
            except Exception as error:
                skipped[_name(step.row)] = _one_line(error)
                del counts[step]
        if left() < time.monotonic() - began:
            break
    return [step.row for step in counts]


def _report(
    options: argparse.Namespace, rows: list[Row], ceilings: dict[str, float], skipped: dict[str, str], wall: float
) -> dict[str, Any]:
    kd = {row.pair: row.best for row in rows if row.engine == "lfcc_jax" and row.method == "kd"}
    measured = []
    for row in rows:
        entry = dataclasses.asdict(row) | {
            "milliseconds": 1e3 * row.best,
            "median_milliseconds": 1e3 * statistics.median(row.seconds),
            "spread": row.spread,
            "images_per_second": options.batch_size / row.best,
            "relative_to_kd": row.best / kd[row.pair] if row.pair in kd else None,
        }
        if row.flops:
            entry["matmul_fraction"] = row.flops / row.best / ceilings["matmul_flops_per_second"]
        if row.bytes_accessed:
            entry["copy_fraction"] = row.bytes_accessed / row.best / ceilings["copy_bytes_per_second"]
        measured.append(entry)
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "torch", "timm"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": "python -m experiments.bench.steps " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "versions": versions,
        **{key: getattr(options, key) for key in ("batch_size", "image_size", "dtype", "augmentation")},
        "ceilings": ceilings,
        "rows": measured,
        "skipped": skipped,
        "wall_seconds": wall,
    }


def markdown(report: dict[str, Any]) -> str:
    """Returns a report as Markdown."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    header = ["teacher -> student", "method", "engine", "ms", "spread", "/ kd", "images/s", "compile, s"]
    header += ["temporaries, GiB", "GFLOP", "GB accessed", "of matmul", "of copy"]
    order = {pair: i for i, pair in enumerate(dict.fromkeys(row["pair"] for row in report["rows"]))}
    rows = [
        [
            row["pair"].replace(":", " -> "),
            row["method"],
            row["engine"],
            number(row["milliseconds"], ".2f"),
            number(row["spread"], ".1%"),
            number(row["relative_to_kd"], ".3f"),
            number(row["images_per_second"], ",.0f"),
            number(row["compile_seconds"], ".1f"),
            number(row["temporary_bytes"] and row["temporary_bytes"] / 2**30, ".2f"),
            number(row["flops"] and row["flops"] / 1e9, ",.0f"),
            number(row["bytes_accessed"] and row["bytes_accessed"] / 1e9, ",.1f"),
            number(row.get("matmul_fraction"), ".1%"),
            number(row.get("copy_fraction"), ".1%"),
        ]
        for row in sorted(report["rows"], key=lambda row: order[row["pair"]])
    ]
    ceilings = report["ceilings"]
    rounds = max((len(row["seconds"]) for row in report["rows"]), default=0)
    text = (
        f"{report['devices']} x {report['device']}, {report['cpu_cores']} CPU cores; "
        f"{', '.join(f'{name} {version}' for name, version in report['versions'].items())}; {report['date']}. "
        f"Batch {report['batch_size']}, {report['image_size']} x {report['image_size']}, {report['dtype']}, "
        f"augmentation: {report['augmentation']}; best of {rounds} rounds in turns. Ceilings of one device: "
        f"bfloat16 matrix product {ceilings['matmul_flops_per_second'] / 1e12:,.3g} TFLOP/s, copy "
        f"{ceilings['copy_bytes_per_second'] / 1e12:,.3g} TB/s. {report['wall_seconds']:.0f} s in all.\n\n"
    )
    text += table(header, rows)
    if report["skipped"]:
        text += "\n\nSkipped:\n" + "\n".join(f"* {name}: {why}" for name, why in report["skipped"].items())
    return text


def _name(row: Row) -> str:
    return f"{row.pair} {row.method}, {row.engine}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which steps a benchmark is about."""

    def names(text: str) -> list[str]:
        return text.split(",")

    def pairs(text: str) -> list[str]:
        for pair in names(text):
            if pair.count(":") != 1:
                raise argparse.ArgumentTypeError(f"must be teacher:student separated by commas, got '{pair}'")
        return names(text)

    parser.add_argument(
        "--pairs", type=pairs, default="swin_tiny:resnet18", help="teacher:student,... (default: %(default)s)"
    )
    parser.add_argument(
        "--methods", type=names, default="kd,lfcc", help="methods of configs/imagenet.py (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, help="images per step, over all devices (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="side of the images, pixels (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="compute dtype (default: %(default)s)"
    )
    parser.add_argument(
        "--augmentation",
        choices=("recipe", "flip"),
        default="recipe",
        help="the recipe's augmentation or only the flip (default: %(default)s)",
    )
    parser.add_argument(
        "--images-at-once",
        type=int,
        default=-1,
        help="images of a device that are augmented, and pass through the teacher, at a time; 0: all, -1: as in a run "
        "(default: %(default)s)",
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file, and returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="time budget, compilation included (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    options = parser.parse_args(arguments)
    try:
        report = measure(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    unfinished = report.pop("unfinished")
    print(markdown(report), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if unfinished:
        os._exit(0)  # a regular exit crashes while XLA compiles in a thread
    return report


if __name__ == "__main__":
    main()
