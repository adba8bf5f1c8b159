"""Trains a teacher, then students by several methods and seeds, and shows what each method brought.

    python -m experiments.compare --config=configs/digits.py

The config file's `get_config` must know `method=teacher` and each of `--methods`; `--methods=all` are those that its
`METHODS` lists. Runs that have ended are not run again, and one that was stopped goes on, so the same command may be
repeated until all is done.

A changed setting of a loss is meant for those methods that have that loss. It must be in the config that the command
line names, so to change one that only some methods have, name one of them:

    python -m experiments.compare --config=configs/digits.py:method=fitnet --methods=scratch,fitnet,fitnet_kd \
        --config.losses.fitnet.weight=0.5
"""

import contextlib
import datetime
import importlib.util
import inspect
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from lfcc_jax import main as cli
from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training import pictures
from lfcc_jax.training.config import read_config
from lfcc_jax.training.report import read_metrics, table

_METHODS = flags.DEFINE_list("methods", ["scratch", "kd", "lfcc"], "What the config file calls the methods, or all.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the students; the teacher has the first.")


# What is said of the student, of distillation, or of what the student sees is not meant for the teacher's own training.
_NOT_THE_TEACHERS = ("student.", "teacher.", "losses.", "data.train_split")


def main() -> None:
    """Runs what the flags say."""
    filename, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    workdir = Path(flags.FLAGS.workdir or f"runs/{Path(filename).stem}_compare").resolve()
    seeds = [int(seed) for seed in _SEEDS.value]
    module = _load(Path(filename))
    methods = list(module.METHODS) if _METHODS.value == ["all"] else _METHODS.value
    make_config = _config_maker(module, argument, overrides)
    for method in ("teacher", *methods):  # what will not do is said before anything is trained
        read_config(make_config(method, seeds[0]))
    if not jax.config.jax_compilation_cache_dir:
        # The seeds of a method share their programs; those are compiled once.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    teacher_dir = workdir / "teacher"
    print(f"teacher: {make_config('teacher', seeds[0]).student.name}, in {teacher_dir}", flush=True)
    with _log_to(teacher_dir):
        teacher = train_and_evaluate(make_config("teacher", seeds[0]), teacher_dir)
    print(f"teacher: test accuracy {teacher['top1_last']:.4f}", flush=True)

    rows = []
    runs = [(method, seed) for seed in seeds for method in methods]
    began = time.monotonic()
    for done, (method, seed) in enumerate(runs):
        config = make_config(method, seed)
        config.teacher.checkpoint = str(teacher_dir)
        with _log_to(workdir / f"{method}_{seed}"):
            summary = train_and_evaluate(config, workdir / f"{method}_{seed}")
        rows.append(
            {"method": method, **summary, "command": " ".join(["python -m experiments.compare", *sys.argv[1:]])}
        )
        (workdir / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
        left = (time.monotonic() - began) / (done + 1) * (len(runs) - done - 1)
        print(
            f"{done + 1}/{len(runs)}  {method} seed {seed}: test accuracy {summary['top1_last']:.4f}  "
            f"{datetime.timedelta(seconds=round(left))} left",
            flush=True,
        )

    text = _report(rows, teacher, methods)
    (workdir / "results.md").write_text(text + "\n")
    print(f"\n{text}\n")
    _draw(workdir, rows, teacher, methods, seeds)
    print(f"results.md, results.json, comparison.png and spectra.png are in {workdir}")


def _load(filename: Path) -> ModuleType:
    """Returns the config file as a module."""
    spec = importlib.util.spec_from_file_location("compared_config", filename)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not inspect.signature(module.get_config).parameters:
        raise UserError(f"{filename}: get_config must take an argument like 'method=kd' for its methods to be compared")
    if _METHODS.value == ["all"] and not hasattr(module, "METHODS"):
        raise UserError(f"{filename} has no METHODS that --methods=all could mean; name them: --methods=scratch,kd")
    return module


def _config_maker(module: ModuleType, argument: str, overrides: Mapping[str, Any]) -> Any:
    """Returns a function of method and seed that makes a run's config, with the command line's changes in it."""

    def make(method: str, seed: int) -> ConfigDict:
        config = module.get_config(",".join(filter(None, [argument, f"method={method}"])))
        config.seed = seed
        for key, value in overrides.items():
            path = key.split(".")
            if method == "teacher" and key.startswith(_NOT_THE_TEACHERS):
                continue
            if path[0] == "losses" and path[1] not in config.losses:
                continue
            config.update_from_flattened_dict({key: value})
        return config

    return make


@contextlib.contextmanager
def _log_to(directory: Path) -> Iterator[None]:
    """Sends what is printed to `log.txt`, and the progress lines of it to the terminal, in place."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log.txt").open("a") as file, contextlib.redirect_stdout(_Tee(file, sys.stdout)):
        yield


class _Tee:
    def __init__(self, file: TextIO, terminal: TextIO):
        self._file, self._terminal = file, terminal

    def write(self, text: str) -> None:
        self._file.write(text)
        if text.startswith("step") and self._terminal.isatty():
            self._terminal.write(f"\r  {text}\033[K")

    def flush(self) -> None:
        self._file.flush()
        self._terminal.flush()


def _report(rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any], methods: Sequence[str]) -> str:
    """Returns the table of means and spreads over the seeds."""

    def spread(values: Sequence[float]) -> str:
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{deviation}"

    lines = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        lines.append([
            method,
            spread([100 * row["top1_last"] for row in mine]),
            spread([100 * row["top1_best"] for row in mine]),
            spread([100 * row["agreement"] for row in mine]),
            f"{mine[0]['head_parameters']:,}",
            spread([1000 * row["seconds_per_step"] for row in mine]),
        ])  # fmt: skip
    first = rows[0]
    header = ["method", "top-1 last, %", "top-1 best, %", "agreement, %", "head parameters", "ms a step"]
    return (
        f"{first['student']} ({first['parameters']:,} parameters) on {first['dataset']}, taught by "
        f"{teacher['student']} ({teacher['parameters']:,} parameters, top-1 {100 * teacher['top1_last']:.2f} %). "
        f"Mean ± standard deviation over {len({row['seed'] for row in rows})} seeds; {first['epochs']:g} epochs, "
        f"{first['hardware']}, jax {first['jax']}, {first['date'][:10]}.\n\n" + table(header, lines)
    )


def _draw(
    workdir: Path,
    rows: Sequence[Mapping[str, Any]],
    teacher: Mapping[str, Any],
    methods: Sequence[str],
    seeds: list[int],
) -> None:
    curves = {m: [read_metrics(workdir / f"{m}_{seed}") for seed in seeds] for m in methods}
    pictures.comparison(workdir / "comparison.png", curves, teacher["top1_last"])
    networks = {}
    for method in methods if len(methods) <= 4 else (methods[0], methods[-1]):  # more lines are not told apart
        spectra = json.loads((workdir / f"{method}_{seeds[0]}" / "spectra.json").read_text())
        networks |= {f"{name}, {method}" if name.startswith("student") else name: s for name, s in spectra.items()}
    pictures.spectra(workdir / "spectra.png", networks)


if __name__ == "__main__":
    cli.run(main)
