"""Trains teachers, then students by several methods and seeds, and shows what each method brought.

    python -m experiments.compare --config=configs/digits.py

The config file's `get_config` must know `method=teacher` and each of `--methods`; `--methods=all` are those that its
`METHODS` lists, `--methods=ablation` those of its `ABLATION`, and so on. Runs that have ended are not run again, and
one that was stopped goes on, so the same command may be repeated until all is done. A run of another config in the same
place is refused, but for a linked directory, which is taken as it is: to change the students' epochs and keep the
teachers, link those (`teacher_*`) into the new work directory.

Of several pairs of networks, `--pairs=vit_nano_32:resnet_micro_32,mixer_nano_32:resnet_micro_32` or those that the
file's `get_pairs` returns (`--pairs=all`), every method trains every student; `get_config` must then know `teacher=`
and `student=`. With `--parallel=8` so many runs share the machine, each a process of its own; on a CPU, each with its
share of the cores.

A changed setting of a loss is meant for those methods that have that loss. It must be in the config that the command
line names, so to change one that only some methods have, name one of them:

    python -m experiments.compare --config=configs/digits.py:method=fitnet --methods=scratch,fitnet,fitnet_kd \
        --config.losses.fitnet.weight=0.5
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.util
import inspect
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import comparison
from lfcc_jax import main as cli
from lfcc_jax import models
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.assembly import check_blocks
from lfcc_jax.training.config import read_config
from lfcc_jax.training.summary import read_summary
from lfcc_jax.training.workdir import check_same_run

_METHODS = flags.DEFINE_list("methods", ["scratch", "kd", "lfcc"], "What the config file calls the methods, or all.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the students; teachers have the config's.")
_PAIRS = flags.DEFINE_list("pairs", [], "teacher:student, or all that the config file lists; none for its own pair.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many runs share the machine.", lower_bound=1)

# What is said of the student, of distillation, or of the student's images is not meant for the teacher's own training.
_NOT_THE_TEACHERS = ("student.", "teacher.", "losses.", "data.train_split", "data.test_split")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: of a config file with an argument, some values changed.

    Attributes:
      file: of the config.
      argument: behind the colon.
      changed: values by their keys, as on the command line.
      workdir: where it lives.
      method: what the config file calls it.
      pair: names of teacher and student, if the config does not have them by itself.
    """

    file: Path
    argument: str
    changed: Mapping[str, Any]
    workdir: Path
    method: str
    pair: tuple[str, str] | None

    def config(self, module: ModuleType) -> ConfigDict:
        """Returns its config."""
        config = module.get_config(self.argument)
        config.update_from_flattened_dict(dict(self.changed))
        return config

    def command(self) -> list[str]:
        """Returns the command that is this run."""
        changed = [f"--config.{key}={value}" for key, value in self.changed.items()]
        return ["-m", "lfcc_jax.main", f"--config={self.file}:{self.argument}", f"--workdir={self.workdir}", *changed]


def main() -> None:
    """Runs what the flags say."""
    filename, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    workdir = Path(flags.FLAGS.workdir or f"runs/{Path(filename).stem}_compare").resolve()
    seeds = _seeds()
    module = _load(Path(filename))
    methods = _methods(module)
    pairs = _pairs(module, argument)

    def run(method: str, seed: int, pair: tuple[str, str] | None) -> Run:
        names, directory = f"method={method}", f"{method}_{seed}"
        if pair:
            names = f"teacher={pair[0]},student={pair[1]},{names}"
            directory = f"{pair[0]}_{pair[1]}/{directory}"
        teacher = f"teacher_{pair[0]}" if pair else "teacher"
        changed = {} if method == "teacher" else {"seed": seed, "teacher.checkpoint": workdir / teacher}
        all_names = ",".join(filter(None, [argument, names]))
        losses = module.get_config(all_names).losses
        for key, value in overrides.items():
            if method == "teacher" and key.startswith(_NOT_THE_TEACHERS):
                continue
            if key.startswith("losses.") and key.split(".")[1] not in losses:
                continue
            if key == "seed" and method != "teacher":  # the students' are --seeds
                continue
            changed[key] = value
        changed = {key: str(value) if isinstance(value, Path) else value for key, value in changed.items()}
        place = workdir / (teacher if method == "teacher" else directory)
        return Run(Path(filename), all_names, changed, place, method, pair)

    teachers = {r.workdir: r for r in (run("teacher", 0, pair) for pair in pairs)}
    students = [run(method, seed, pair) for seed in seeds for pair in pairs for method in methods]
    check_blocks(read_config(flags.FLAGS.config))
    for one in (*teachers.values(), *students):  # fail before anything is trained
        check_blocks(read_config(one.config(module)))
        _ended(one, module)
    if not jax.config.jax_compilation_cache_dir:
        # The seeds of a method share their programs; those are compiled once.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    taught_by = {}
    for one, summary in _run_all(list(teachers.values()), module):
        print(f"teacher: {summary['student']}, test accuracy {summary['top1_last']:.4f}, in {one.workdir}", flush=True)
        taught_by[one.pair[0] if one.pair else ""] = summary
    rows = []
    began = time.monotonic()
    for one, summary in _run_all(students, module):
        command = " ".join(["python -m experiments.compare", *sys.argv[1:]])
        pair = {"pair": " -> ".join(one.pair)} if one.pair else {}
        rows.append({"method": one.method, **pair, **summary, "command": command})
        (workdir / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
        left = (time.monotonic() - began) / len(rows) * (len(students) - len(rows))
        whose = f"{pair['pair']}, " if pair else ""
        print(
            f"{len(rows)}/{len(students)}  {whose}{one.method} seed {summary['seed']}: test accuracy "
            f"{summary['top1_last']:.4f}  {datetime.timedelta(seconds=round(left))} left",
            flush=True,
        )

    text = comparison.report(rows, taught_by, methods, pairs)
    (workdir / "results.md").write_text(text + "\n")
    print(f"\n{text}\n")
    made = comparison.draw(workdir, rows, taught_by, methods, seeds, pairs)
    print(f"results.md, results.json, {' and '.join(made)} are in {workdir}")


def _load(filename: Path) -> ModuleType:
    """Returns the config file as a module."""
    spec = importlib.util.spec_from_file_location("compared_config", filename)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not inspect.signature(module.get_config).parameters:
        raise UserError(f"{filename}: get_config must take an argument like 'method=kd' for its methods to be compared")
    for flag, asked, name, example in (
        ("methods", _METHODS.value, "METHODS", "scratch,kd"),
        ("pairs", _PAIRS.value, "get_pairs", "vit_nano_32:resnet_micro_32"),
    ):
        if asked == ["all"] and not hasattr(module, name):
            raise UserError(f"{filename} has no {name} that --{flag}=all could mean; name them: --{flag}={example}")
    return module


def _seeds() -> list[int]:
    """Returns the seeds of the students."""
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError as error:
        raise UserError(f"--seeds: '{','.join(_SEEDS.value)}' will not do; whole numbers will, as 0,1,2") from error
    if not seeds:
        raise UserError("--seeds: none given; whole numbers will do, as 0,1,2")
    return seeds


def _methods(module: ModuleType) -> list[str]:
    """Returns what the config file calls the methods."""
    asked = _METHODS.value
    if not asked:
        raise UserError("--methods: none given; name them, as scratch,kd")
    if len(asked) > 1:
        return asked
    group = getattr(module, "METHODS" if asked == ["all"] else asked[0].upper(), None)
    return list(group) if isinstance(group, tuple | list) else asked


def _pairs(module: ModuleType, argument: str) -> list[tuple[str, str] | None]:
    """Returns the names of teachers and students; [None] for the pair that the config has by itself."""
    if _PAIRS.value == ["all"]:
        return list(module.get_pairs(argument))
    pairs = [tuple(pair.split(":")) for pair in _PAIRS.value]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"--pairs: '{':'.join(pair)}' will not do; teacher:student will")
        for name in pair:
            if models.full_name(name) not in models.list_models():
                raise unknown("network", name, models.list_models(), "--pairs")
    return pairs or [None]


def _run_all(runs: Sequence[Run], module: ModuleType) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yields each run with its summary as it ends."""
    if _PARALLEL.value == 1:
        for run in runs:
            summary = _ended(run, module)
            if summary is None:
                with _log_to(run.workdir):
                    summary = train_and_evaluate(run.config(module), run.workdir)
            yield run, summary
        return
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / _PARALLEL.value:.3f}",
    }

    shares = _shares_of_cores()

    def in_process(run: Run) -> dict[str, Any]:
        if (summary := _ended(run, module)) is not None:
            return summary
        run.workdir.mkdir(parents=True, exist_ok=True)
        share = shares.get()
        with (run.workdir / "log.txt").open("a") as log:
            command = [*share, sys.executable, *run.command()]
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
        shares.put(share)
        if done.returncode:
            last = (run.workdir / "log.txt").read_text().strip().splitlines()[-1:]
            raise UserError(f"{run.workdir} ended with status {done.returncode}: {''.join(last)}")
        return json.loads((run.workdir / "summary.json").read_text())

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL.value) as pool:
        started = {pool.submit(in_process, run): run for run in runs}
        try:
            for ended in concurrent.futures.as_completed(started):
                yield started[ended], ended.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ended(run: Run, module: ModuleType) -> dict[str, Any] | None:
    """Returns the summary of a run that has ended, None of one that has not; one of another config is refused."""
    linked = run.method == "teacher" and run.workdir.is_symlink()
    if linked and read_summary(run.workdir) is None:
        raise UserError(f"{run.workdir} links to no teacher that has ended; it needs a summary.json")
    if not linked:
        check_same_run(run.workdir, run.config(module))
    return read_summary(run.workdir)


def _shares_of_cores() -> queue.Queue[list[str]]:
    """Returns what to put before each command that runs at one time: on a CPU, those that share its cores out."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    parts = [cores[i :: _PARALLEL.value] for i in range(_PARALLEL.value)]
    shares: queue.Queue[list[str]] = queue.Queue()
    share_out = jax.default_backend() == "cpu" and all(parts) and shutil.which("taskset")
    for part in parts:
        shares.put(["taskset", "--cpu-list", ",".join(map(str, part))] if share_out else [])
    return shares


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


if __name__ == "__main__":
    cli.run(main)
