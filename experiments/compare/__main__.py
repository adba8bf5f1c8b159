"""Trains teachers, then students with several methods and seeds, and reports the gain of each method.

    python -m experiments.compare --config=configs/digits.py

The config file's `get_config` must accept `method=teacher` and each of `--methods`. `--methods=all` means those in its
`METHODS`, `--methods=ablation` those in its `ABLATION`, and so on. The same command resumes a comparison: finished runs
are skipped and interrupted ones resumed. It is an error if a work directory contains a run with a different config,
unless it is a link to a teacher: to change the students' epochs and keep the teachers, link these (`teacher_*`) into a
new work directory.

With several pairs of networks, `--pairs=vit_nano_32:resnet_micro_32,mixer_nano_32:resnet_micro_32` or those that the
file's `get_pairs` returns (`--pairs=all`), every method trains every student; `get_config` must then accept `teacher=`
and `student=`. With `--parallel=8`, eight runs share the machine, each in its own process; on a CPU, each on its
own cores. SIGTERM or Ctrl-C stops all runs after each has saved a checkpoint.

On a machine that you have for some minutes only, `--minutes=12` stops in the same way when the time is over, and
reports what has finished. Runs start seed by seed, and within a seed with the methods that the config file's `FIRST`
names, if it has one. The same command resumes, also on another machine to which a relative `--workdir` was copied.

An override of a loss applies to the methods that have the loss. The config on the command line must have it too, so to
override a loss that only some methods have, name one of them:

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
    "methods", ["scratch", "kd", "lfcc"], "Methods of the config file, or one of its groups, such as all."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the students; teachers use that of the config.")
_PAIRS = flags.DEFINE_list("pairs", [], "TEACHER:STUDENT,... or all, which means those of the config file.")
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Number of runs at a time.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 0.0, "Stop after so many minutes; 0 for no limit.", lower_bound=0.0)

# Overrides that do not apply when training the teacher.
_NOT_THE_TEACHERS = ("student.", "teacher.", "losses.", "data.train_split", "data.test_split")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a config file with an argument and overrides.

    Attributes:
      file: Path of the config file.
      argument: The part of `--config` after the colon.
      changed: Overrides, by key.
      workdir: Work directory of the run.
      method: Name of the method in the config file.
      pair: Names of teacher and student, or None for those of the config.
    """

    file: Path
    argument: str
    changed: Mapping[str, Any]
    workdir: Path
    method: str
    pair: tuple[str, str] | None

    def config(self, module: ModuleType) -> ConfigDict:
        """Returns the config of the run."""
        config = module.get_config(self.argument)
        config.update_from_flattened_dict(dict(self.changed))
        return config

    def command(self) -> list[str]:
        """Returns the command that starts the run."""
        changed = [f"--config.{key}={value}" for key, value in self.changed.items()]
        return ["-m", "lfcc_jax.main", f"--config={self.file}:{self.argument}", f"--workdir={self.workdir}", *changed]


def main() -> None:
    """Runs the comparison that the flags describe."""
    filename, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    workdir = flags.FLAGS.workdir or f"runs/{Path(filename).stem}_compare"
    if storage.is_remote(workdir):
        raise UserError(f"`--workdir` of a comparison must be on a local disk, got '{workdir}'")
    storage.resolve(workdir, "--workdir")  # an invalid path is an error
    # Not absolute, because teachers' paths are part of the students' configs, which must hold on another machine.
    workdir = Path(workdir).expanduser()
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
            if key == "seed" and method != "teacher":  # students use --seeds
                continue
            changed[key] = value
            used.add(key)
        changed = {key: str(value) if isinstance(value, Path) else value for key, value in changed.items()}
        directory = workdir / (teacher if method == "teacher" else directory)
        return Run(Path(filename), all_names, changed, directory, method, pair)

    teachers = {r.workdir: r for r in (run("teacher", 0, pair) for pair in pairs)}
    students = [run(*each) for each in _in_order(methods, seeds, pairs, getattr(module, "FIRST", ()))]
    described = read_config(flags.FLAGS.config)
    if several := [name for name in described.teachers if name]:
        raise UserError(
            f"config.teacher must be one teacher, which a comparison trains, got {', '.join(several)}; use "
            "lfcc_jax.main for a student of several teachers"
        )
    check_blocks(described)
    if unused := sorted(overrides.keys() - used):
        raise UserError(f"--config.{unused[0]}: none of --methods={','.join(methods)} has that loss")
    for each in (*teachers.values(), *students):  # validate all configs before training
        check_blocks(read_config(each.config(module)))
    students.sort(key=lambda student: _summary(student, module) is None)  # those that have finished are reported first
    teacher_summaries, rows, stopped = {}, [], False
    with _time_limit(_MINUTES.value) as over:
        try:
            _train(list(teachers.values()), students, module, teacher_summaries, rows, workdir, over)
        except Preempted:
            if not over.is_set():
                raise
            stopped = True
    if stopped:
        print(f"{_MINUTES.value:g} minutes are over; the same command resumes")
        if rows:
            written = report.make(workdir / "results.json")
            print(f"{len(rows)} of {len(students)} students have finished; {written[0]} has what they show")
        return

    text = report.markdown(rows, teacher_summaries, methods, pairs)
    storage.write_text(workdir / "results.md", text + "\n")
    print(f"\n{text}\n")
    plots = report.draw(workdir, rows, teacher_summaries, methods, seeds, pairs)
    print(f"results.md, results.json, {' and '.join(plots)} written to {workdir}")


def _train(
    teachers: Sequence[Run],
    students: Sequence[Run],
    module: ModuleType,
    teacher_summaries: dict[str, Any],
    rows: list[dict[str, Any]],
    workdir: Path,
    over: threading.Event,
) -> None:
    """Trains teachers, then students, and adds their summaries to `teacher_summaries` and `rows`.

    Raises:
      Preempted: after a signal to stop, or before another run if the event `over` is set.
    """
    with contextlib.closing(_run_all(teachers, module, over)) as finished:
        for each, summary in finished:
            accuracy = f"test accuracy {summary['top1_last']:.4f}"
            print(f"teacher: {summary['student']}, {accuracy}, in {each.workdir}", flush=True)
            teacher_summaries[each.pair[0] if each.pair else ""] = summary
    began = time.monotonic()
    with contextlib.closing(_run_all(students, module, over)) as finished:
        for each, summary in finished:
            command = " ".join(["python -m experiments.compare", *sys.argv[1:]])
            pair = {"pair": " -> ".join(each.pair)} if each.pair else {}
            rows.append({"method": each.method, **pair, **summary, "command": command})
            storage.write_json(workdir / "results.json", rows)
            left = (time.monotonic() - began) / len(rows) * (len(students) - len(rows))
            prefix = f"{pair['pair']}, " if pair else ""
            print(
                f"{len(rows)}/{len(students)}  {prefix}{each.method} seed {summary['seed']}: test accuracy "
                f"{summary['top1_last']:.4f}  {datetime.timedelta(seconds=round(left))} left",
                flush=True,
            )


@contextlib.contextmanager
def _time_limit(minutes: float) -> Iterator[threading.Event]:
    """Stops the runs in progress after some minutes, as SIGTERM does; yields an event that is then set. 0: no limit."""
    over = threading.Event()
    if not minutes:
        yield over
        return

    finished, previous = threading.Event(), signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        """Ignores the signal once the time is over: between runs nothing has to be saved."""
        del frame
        if not over.is_set():
            signal.signal(number, previous)
            signal.raise_signal(number)

    def end() -> None:
        if finished.wait(60 * minutes):
            return
        over.set()
        # Again and again, because a run that is still compiling does not see the first signals.
        while not finished.wait(0.1):
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)
    timer = threading.Thread(target=end)
    timer.start()
    try:
        yield over
    finally:
        finished.set()
        timer.join()
        signal.signal(signal.SIGTERM, previous)


def _in_order(
    methods: Sequence[str], seeds: Sequence[int], pairs: Sequence[Any], first: Sequence[str]
) -> list[tuple[str, int, Any]]:
    """Returns (method, seed, pair) of all students in the order of training: seed by seed, some methods first."""
    parts = [[m for m in first if m in methods], [m for m in methods if m not in first]]
    return [(method, seed, pair) for seed in seeds for part in parts for pair in pairs for method in part]


def _load(filename: Path) -> ModuleType:
    """Returns the config file as a module."""
    spec = importlib.util.spec_from_file_location("compared_config", filename)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not inspect.signature(module.get_config).parameters:
        raise UserError(f"{filename}: get_config must take an argument such as 'method=kd'")
    for flag, values, name, example in (
        ("methods", _METHODS.value, "METHODS", "scratch,kd"),
        ("pairs", _PAIRS.value, "get_pairs", "vit_nano_32:resnet_micro_32"),
    ):
        if values == ["all"] and not hasattr(module, name):
            raise UserError(f"--{flag}=all: {filename} has no {name}; list the {flag}: --{flag}={example}")
    return module


def _seeds() -> list[int]:
    """Returns the seeds of the students."""
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError as error:
        raise UserError(f"--seeds must be integers such as 0,1,2, got '{','.join(_SEEDS.value)}'") from error
    if not seeds:
        raise UserError("--seeds must not be empty; give integers such as 0,1,2")
    return seeds


def _methods(module: ModuleType) -> list[str]:
    """Returns the names of the methods, with groups expanded."""
    names = _METHODS.value
    if not names:
        raise UserError("--methods must not be empty; give names such as scratch,kd")
    if len(names) > 1:
        return names
    group = getattr(module, "METHODS" if names == ["all"] else names[0].upper(), None)
    return list(group) if isinstance(group, tuple | list) else names


def _pairs(module: ModuleType, argument: str) -> list[tuple[str, str] | None]:
    """Returns the names of teachers and students; [None] for the pair of the config."""
    if _PAIRS.value == ["all"]:
        return list(module.get_pairs(argument))
    pairs = [tuple(pair.split(":")) for pair in _PAIRS.value]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"--pairs must be teacher:student separated by commas, got '{':'.join(pair)}'")
        for name in pair:
            if models.full_name(name) not in models.list_models():
                raise unknown("network", name, models.list_models(), "--pairs")
    return pairs or [None]


def _run_all(runs: Sequence[Run], module: ModuleType, over: threading.Event) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yields each run and its summary as it finishes.

    Raises:
      Preempted: after SIGTERM or Ctrl-C, once the runs in progress have saved their checkpoints; or if a run would have
        to start although the event `over` is set.
    """
    if _PARALLEL.value == 1:
        for run in runs:
            summary = _summary(run, module)
            if summary is None:
                if over.is_set():
                    raise Preempted("no time is left for another run")
                with _log_to(run.workdir):
                    summary = train_and_evaluate(run.config(module), run.workdir)
            yield run, summary
        return
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / _PARALLEL.value:.3f}",
    }
    prefixes = _command_prefixes()
    processes = _Processes()
    if runs:
        logs = runs[0].workdir.parent / "*" / "log.txt"
        print(f"{len(runs)} runs, {_PARALLEL.value} at a time; progress in {logs}", flush=True)

    def in_process(run: Run) -> dict[str, Any]:
        if (summary := _summary(run, module)) is not None:
            return summary
        if over.is_set():
            raise Preempted("no time is left for another run")
        storage.make_directory(run.workdir)
        prefix = prefixes.get()
        with (run.workdir / "log.txt").open("a") as log:
            status = processes.run([*prefix, sys.executable, *run.command()], environment, log)
        prefixes.put(prefix)
        if status:
            last = (run.workdir / "log.txt").read_text().strip().splitlines()[-1:]
            raise UserError(f"{run.workdir} failed with status {status}: {''.join(last)}")
        return storage.read_json(run.workdir / "summary.json")

    def stop(number: int, frame: Any) -> None:
        del frame
        signal.signal(number, signal.SIG_IGN)  # another one must not interrupt the stopping
        raise Preempted("stopped all runs in progress; the same command resumes them")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    pool = concurrent.futures.ThreadPoolExecutor(_PARALLEL.value)
    try:
        submitted = {pool.submit(in_process, run): run for run in runs}
        for future in concurrent.futures.as_completed(submitted):
            yield submitted[future], future.result()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        pool.shutdown(wait=False, cancel_futures=True)
        processes.stop()
        pool.shutdown()


class _Processes:
    """Child processes; after `stop`, none is left and none can start."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, command: list[str], environment: Mapping[str, str], log: TextIO) -> int:
        """Runs a command with its output in `log` and returns its exit status."""
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
        """Sends SIGTERM to all processes; each run then saves a checkpoint and exits."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _summary(run: Run, module: ModuleType) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None for an unfinished one.

    Raises:
      UserError: if the work directory contains a run with a different config, or is a link to no finished teacher.
    """
    linked = run.method == "teacher" and run.workdir.is_symlink()
    if linked and read_summary(run.workdir) is None:
        raise UserError(f"{run.workdir} must link to the work directory of a finished teacher, with a summary.json")
    if not linked:
        check_same_run(run.workdir, run.config(module))
    return read_summary(run.workdir)


def _command_prefixes() -> queue.Queue[list[str]]:
    """Returns a command prefix for each parallel run: on a CPU, one that pins the run to its own cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    parts = [cores[i :: _PARALLEL.value] for i in range(_PARALLEL.value)]
    prefixes: queue.Queue[list[str]] = queue.Queue()
    pin = jax.default_backend() == "cpu" and all(parts) and shutil.which("taskset")
    for part in parts:
        prefixes.put(["taskset", "--cpu-list", ",".join(map(str, part))] if pin else [])
    return prefixes


@contextlib.contextmanager
def _log_to(directory: Path) -> Iterator[None]:
    """Redirects stdout to `log.txt`, and shows progress lines on the terminal too."""
    storage.make_directory(directory)
    with (directory / "log.txt").open("a") as file:
        tee = _Tee(file, sys.stdout, f"{directory.name}: ")
        try:
            with contextlib.redirect_stdout(tee):
                yield
        finally:
            tee.clear()


class _Tee:
    """Writes to a file, and progress lines to the terminal: in place if it is interactive, else line by line."""

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
