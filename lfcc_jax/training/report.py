"""Progress lines, metrics files and tables."""

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lfcc_jax import storage
from lfcc_jax.training.processes import is_first


def log(text: str) -> None:
    """Prints a line without buffering, in process 0 only."""
    if is_first():
        print(text, flush=True)


# Metrics of a training step that are not the loss of a method.
_NOT_LOSSES = ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_second")
_SECONDS_BETWEEN_LINES = 3.0


class Progress:
    """Formats progress lines. Images per second include training only; the time left includes everything.

    Args:
      total_steps: Number of steps of the run.
      steps_per_epoch: Number of steps per epoch.
      batch_size: Global batch size.
      step: Step at which the run starts or resumes.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, batch_size: int, step: int):
        self._total, self._epoch, self._batch = total_steps, steps_per_epoch, batch_size
        self._first = self._resumed = step
        self._start_time, self._last_line = time.monotonic(), -float("inf")
        self._training_seconds = self._training_steps = 0.0
        self.resume(step)

    def pause(self, step: int) -> None:
        """Pauses the clock at `step`, which must be complete."""
        self._training_seconds += time.monotonic() - self._resume_time
        self._training_steps += step - self._resumed

    def resume(self, step: int) -> None:
        """Starts the clock at `step`."""
        self._resume_time, self._resumed = time.monotonic(), step

    @property
    def images_per_second(self) -> float:
        """Images per second of training so far, without pauses."""
        return self._training_steps * self._batch / self._training_seconds if self._training_steps else 0.0

    def line(self, step: int, metrics: Mapping[str, float], waited: float = 0.0) -> str | None:
        """Returns the progress line for `step`; None if the last one is only seconds old.

        Args:
          step: Number of steps done.
          metrics: `loss`, `accuracy` if there are labels, and the losses of the methods, whose weighted sum is `loss`.
          waited: Seconds in which the steps so far waited for images. The line has the images per second that the
            loader alone would read, if it may be what limits the speed.
        """
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and step < self._total:
            return None
        self._last_line = now
        left = (now - self._start_time) / (step - self._first) * (self._total - step)
        width = len(str(self._total))
        loader = (step - self._first) * self._batch / waited if waited else float("inf")
        limits = f" (the loader: {loader:,.0f})" if loader < 3 * self.images_per_second else ""
        terms = [f"{name} {value:.3f}" for name, value in metrics.items() if name not in _NOT_LOSSES]
        return (
            f"step {step:{width}}/{self._total}  epoch {step / self._epoch:.1f}  loss {metrics['loss']:.4f}"
            + (f" ({', '.join(terms)})" if len(terms) > 1 else "")
            + (f"  accuracy {metrics['accuracy']:.4f}" if "accuracy" in metrics else "")
            + f"  {self.images_per_second:,.0f} images/s{limits}  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )


class MetricsWriter:
    """Appends metrics to `metrics.jsonl`, one object per line, and on a local disk to TensorBoard files.

    TensorBoard files need TensorFlow, which would access a bucket with a separate client and other settings.

    Args:
      workdir: Work directory of the run.
      step: Step at which the run starts or resumes. Later rows, from before a crash, are dropped.
    """

    def __init__(self, workdir: epath.Path, step: int):
        self._path = workdir / "metrics.jsonl"
        self._tensorboard = None
        if not is_first():
            return
        kept = [row for row in read_metrics(workdir) if 0 < step >= row["step"]]
        storage.write_text(self._path, "".join(storage.to_json(row) + "\n" for row in kept))
        if storage.is_remote(workdir):
            return
        try:
            from clu.metric_writers import SummaryWriter
        except ImportError:  # no TensorFlow or no tensorboard
            return
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes and flushes the metrics of `step`."""
        if is_first():
            storage.append_line(self._path, storage.to_json({"step": step, **metrics}))
        if self._tensorboard is not None:
            with storage.errors_in_one_line(f"cannot write {self._path.parent / 'tensorboard'}"):
                self._tensorboard.write_scalars(step, dict(metrics))
                self._tensorboard.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`. Skips damaged lines, with a log line unless it is a truncated last line."""
    path = workdir / "metrics.jsonl"
    if not storage.exists(path):
        return []
    text = storage.read_text(path)
    rows, damaged = [], []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if "\N{REPLACEMENT CHARACTER}" not in line else None
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        elif number <= text.count("\n"):
            damaged.append(number)
    if damaged:
        log(f"{path}: skipped damaged lines {', '.join(map(str, damaged))}")
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table with aligned columns; the first is left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + ":" if i else ":" + "-" * (w + 1) for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
