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
share of the cores. A signal (SIGTERM, Ctrl-C) stops all of them, and each saves itself first.

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
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.compare import report
from lfcc_jax import main as cli
from lfcc_jax import models, storage
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import check_blocks
from lfcc_jax.training.preemption import Preempted
from lfcc_jax.training.summary import read_summary
from lfcc_jax.training.workdir import check_same_run

_METHODS = flags.DEFINE_list(
    "methods", ["scratch", "kd", "lfcc"], "Methods by the config file's names, or one of its groups, as all."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the students; teachers have the config's.")
_PAIRS = flags.DEFINE_list("pairs", [], "TEACHER:STUDENT,..., or all that the config file lists.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Number of runs that share the machine.", lower_bound=1)

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
    workdir = flags.FLAGS.workdir or f"runs/{Path(filename).stem}_compare"
    if storage.is_remote(workdir):
        raise UserError(f"`--workdir` of a comparison must be on a local disk, got '{workdir}'")
    workdir = Path(storage.resolve(workdir, "--workdir")).resolve()
    seeds = _seeds()
    module = _load(Path(filename))
    methods = _methods(module)
    pairs = _pairs(module, argument)

    used: set[str] = set()

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
            used.add(key)
        changed = {key: str(value) if isinstance(value, Path) else value for key, value in changed.items()}
        place = workdir / (teacher if method == "teacher" else directory)
        return Run(Path(filename), all_names, changed, place, method, pair)

    teachers = {r.workdir: r for r in (run("teacher", 0, pair) for pair in pairs)}
    students = [run(method, seed, pair) for seed in seeds for pair in pairs for method in methods]
    check_blocks(read_config(flags.FLAGS.config))
    if unused := sorted(overrides.keys() - used):
        raise UserError(f"--config.{unused[0]}: none of --methods={','.join(methods)} has that loss")
    for one in (*teachers.values(), *students):  # fail before anything is trained
        check_blocks(read_config(one.config(module)))
        _ended(one, module)
    taught_by = {}
    with contextlib.closing(_run_all(list(teachers.values()), module)) as ended:
        for one, summary in ended:
            print(
                f"teacher: {summary['student']}, test accuracy {summary['top1_last']:.4f}, in {one.workdir}", flush=True
            )
            taught_by[one.pair[0] if one.pair else ""] = summary
    rows = []
    began = time.monotonic()
    with contextlib.closing(_run_all(students, module)) as ended:
        for one, summary in ended:
            command = " ".join(["python -m experiments.compare", *sys.argv[1:]])
            pair = {"pair": " -> ".join(one.pair)} if one.pair else {}
            rows.append({"method": one.method, **pair, **summary, "command": command})
            storage.write_json(workdir / "results.json", rows)
            left = (time.monotonic() - began) / len(rows) * (len(students) - len(rows))
            whose = f"{pair['pair']}, " if pair else ""
            print(
                f"{len(rows)}/{len(students)}  {whose}{one.method} seed {summary['seed']}: test accuracy "
                f"{summary['top1_last']:.4f}  {datetime.timedelta(seconds=round(left))} left",
                flush=True,
            )

    text = report.markdown(rows, taught_by, methods, pairs)
    storage.write_text(workdir / "results.md", text + "\n")
    print(f"\n{text}\n")
    made = report.draw(workdir, rows, taught_by, methods, seeds, pairs)
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
    """Yields each run with its summary as it ends.

    Raises:
      Preempted: after SIGTERM or Ctrl-C, once the runs in progress have saved themselves.
    """
    if _PARALLEL.value == 1:
        for run in runs:
            summary = _ended(run, module)
            if summary is None:
                with _log_to(run.workdir):
                    summary = train_and_evaluate(run.config(module), run.workdir)
            yield run, summary
        return
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / _PARALLEL.value:.3f}",
    }
    shares = _shares_of_cores()
    processes = _Processes()
    if runs:
        place = runs[0].workdir.parent
        print(f"{len(runs)} runs, {_PARALLEL.value} at a time; their progress is in {place}/*/log.txt", flush=True)

    def in_process(run: Run) -> dict[str, Any]:
        if (summary := _ended(run, module)) is not None:
            return summary
        storage.make_directory(run.workdir)
        share = shares.get()
        with (run.workdir / "log.txt").open("a") as log:
            status = processes.run([*share, sys.executable, *run.command()], environment, log)
        shares.put(share)
        if status:
            last = (run.workdir / "log.txt").read_text().strip().splitlines()[-1:]
            raise UserError(f"{run.workdir} ended with status {status}: {''.join(last)}")
        return storage.read_json(run.workdir / "summary.json")

    def stop(number: int, frame: Any) -> None:
        del number, frame
        raise Preempted("stopped, with all runs in progress; the same command resumes them")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    pool = concurrent.futures.ThreadPoolExecutor(_PARALLEL.value)
    try:
        started = {pool.submit(in_process, run): run for run in runs}
        for ended in concurrent.futures.as_completed(started):
            yield started[ended], ended.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        pool.shutdown(wait=False, cancel_futures=True)
        processes.stop()
        pool.shutdown()


class _Processes:
    """Child processes that end when this one is told to: none is left behind, and none starts afterwards."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, command: list[str], environment: Mapping[str, str], log: TextIO) -> int:
        """Returns the exit status of a command, whose output goes to `log`."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def stop(self) -> None:
        """Sends SIGTERM to all, which a run answers by saving itself."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


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
    """Sends what is printed to `log.txt`, and what tells that work goes on to the terminal too."""
    storage.make_directory(directory)
    with (directory / "log.txt").open("a") as file:
        tee = _Tee(file, sys.stdout, f"{directory.name}: ")
        try:
            with contextlib.redirect_stdout(tee):
                yield
        finally:
            tee.clear()


class _Tee:
    """Writes to a file; of that, lines of progress to the terminal: in place if it is one, else one after another."""

    def __init__(self, file: TextIO, terminal: TextIO, prefix: str):
        self._file, self._terminal, self._prefix = file, terminal, prefix
        self._in_place = terminal.isatty()

    def write(self, text: str) -> None:
        self._file.write(text)
        if text.startswith(("compiling", "step")):
            line = f"{self._prefix}{text.strip()}"
            if self._in_place:
                width = shutil.get_terminal_size().columns - 1
                self._terminal.write(f"\r{line[:width]}\033[K")
            else:
                self._terminal.write(f"{line}\n")
            self._terminal.flush()

    def clear(self) -> None:
        if self._in_place:
            self._terminal.write("\r\033[K")

    def flush(self) -> None:
        self._file.flush()
        self._terminal.flush()


if __name__ == "__main__":
    cli.run(main)
