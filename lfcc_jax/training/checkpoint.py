"""Checkpoints of a run: its state, and a record of what else it needs to resume, with digests of both."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from lfcc_jax import storage
from lfcc_jax.digest import changes, digests, not_finite, some
from lfcc_jax.errors import UserError
from lfcc_jax.training.report import say

_policy = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one run, saved in the background. The last two and the best are kept.

    Two, so that a run survives if the newest is damaged. The best is the one with the highest test accuracy among those
    saved with one.

    Args:
      directory: where the checkpoints are, one directory for each step.
    """

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)
        self._best = _Best(_accuracies(self._directory))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy.AnyPreservationPolicy([_policy.LatestN(2), self._best]),
            cleanup_tmp_directories=True,
        )
        storage.drop_background_errors()
        with storage.errors_in_one_line(f"cannot read {self._directory}"):
            self._manager = _CheckpointManager(self._directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: Mapping[str, Any], accuracy: float | None = None) -> None:
        """Saves a state. Returns once it is copied to the host; the write continues in the background.

        Args:
          step: number of updates made so far.
          state: a tree of arrays, all of them finite; see `digest.not_finite`.
          about: what else the run needs to resume, as JSON; the same in every process.
          accuracy: of an evaluation at this step, if there was one.

        Raises:
          UserError: if there is a later checkpoint already.
        """
        record = {"step": step, "accuracy": accuracy, "about": about, "arrays": digests(state)}
        record = json.loads(json.dumps(record))  # as it will be read
        signed = {"record": record, "sha256": _sha256(record)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(signed))
        self._best.accuracies[step] = accuracy
        with self._save_errors():
            saved = self._manager.save(step, args=args)
        if not saved:
            raise UserError(f"cannot save step {step}: {self._directory} already contains step {self.latest_step}")

    def restore(self, abstract_state: Any, last_step: int) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and `about` of the newest undamaged checkpoint, or None if there are no checkpoints.

        A checkpoint is damaged if it cannot be read, if what was read is not what was saved, or if it contains NaN or
        infinity. Damaged checkpoints are moved to `damaged/`, next to the directory, once an older one was read.

        Args:
          abstract_state: shapes, dtypes and shardings of the state.
          last_step: number of steps of the whole run.

        Raises:
          UserError: if there are checkpoints and all are damaged, or one is of a step after `last_step`. Then none is
            moved.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if steps and steps[0] > last_step:
            raise UserError(
                f"{self._directory / str(steps[0])} is after the last step of this run, {last_step}; if it is not a "
                "checkpoint of this run, delete it; if it is, the data set has changed since"
            )
        reasons = {}
        for step in steps:
            found = self._read(step, abstract_state)
            if not isinstance(found, str):
                self._set_aside(reasons)
                return found
            reasons[step] = found
        if steps:
            newest = reasons[steps[0]]
            raise UserError(f"none of the checkpoints {steps} in {self._directory} can be used; the newest: {newest}")
        return None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and stops the background threads."""
        with self._save_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Turns an error of this save, or of one before that was still being written, into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            steps = []
            with contextlib.suppress(Exception):  # the directory may be gone
                steps = ocp.utils.checkpoint_steps(self._directory)
            last = f"the last checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"
            raise UserError(f"cannot save to {self._directory}: {storage.one_line(error)}; {last}") from error

    def _read(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]] | str:
        """Returns state and `about` of a checkpoint, or what is wrong with it; the same in every process."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore())
        # Left installed after a failure: aborted reads may report later.
        hook, sys.unraisablehook = sys.unraisablehook, _quiet_aborted_reads
        problem = ""
        try:
            read = self._manager.restore(step, args=args)
            record = _verified(read["record"], step)
        except Exception as error:  # Orbax raises everything from JSONDecodeError to bare Exception here.
            problem = " ".join(str(error).split())[:200] or type(error).__name__
        if problem := _of_any_process(problem):
            return problem
        sys.unraisablehook = hook
        if wrong := changes(record["arrays"], digests(read.state)):
            problem = f"{some(wrong)} differs from what was saved"
        elif wrong := not_finite(read.state):
            problem = f"{some(wrong)} contains NaN or infinity"
        if problem := _of_any_process(problem):
            return problem
        return read.state, record["about"]

    def _set_aside(self, reasons: Mapping[int, str]) -> None:
        if not reasons:
            return
        damaged = self._directory.parent / "damaged"
        if jax.process_index() == 0:
            for step in reasons:
                storage.move_directory(self._directory / str(step), damaged / str(step))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()
        for step, reason in reasons.items():
            say(f"checkpoint {step} is damaged and was moved to {damaged}: {reason}")


class _Best(_policy.PreservationPolicy):
    """Preserves the checkpoint with the highest accuracy, the newest of several.

    Orbax's `BestN` forgets the metrics of checkpoints that another process saved, unless it keeps them in files of its
    own, and then a damaged one of those makes all checkpoints unusable.
    """

    def __init__(self, accuracies: dict[int, float | None]):
        self.accuracies = accuracies

    def should_preserve(
        self, checkpoints: Sequence[_policy.PolicyCheckpointInfo], *, context: _policy.PreservationContext
    ) -> Sequence[bool]:
        del context
        known = [(value, c.step) for c in checkpoints if (value := self.accuracies.get(c.step)) is not None]
        return [bool(known) and checkpoint.step == max(known)[1] for checkpoint in checkpoints]


def _accuracies(directory: epath.Path) -> dict[int, float | None]:
    """Returns the accuracy of each checkpoint that has an undamaged record."""
    found = {}
    for path in directory.iterdir() if storage.exists(directory) else ():
        try:
            step = int(path.name)
            found[step] = _verified(ocp.JsonCheckpointHandler().restore(path / "record"), step)["accuracy"]
        except Exception:  # not a checkpoint, or one that `restore` will report
            continue
    return found


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _verified(signed: Mapping[str, Any], step: int) -> dict[str, Any]:
    record = signed["record"]
    if _sha256(record) != signed["sha256"]:
        raise ValueError("its record differs from what was saved")
    if record["step"] != step:
        raise ValueError(f"it is the checkpoint of step {record['step']}")
    return record


def _of_any_process(problem: str) -> str:
    """Returns the problem, or a note if only other processes have one: all must resume from the same step."""
    anywhere = multihost_utils.process_allgather(np.asarray(bool(problem))).any()
    return problem or ("another process could not read it" if anywhere else "")


class _CheckpointManager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never asks JAX's preemption service, whose counter is the training loop's: see `StopRequest`.

        Orbax asks with steps, some from a background thread, and thereby moves the counter past the loop's.
        """
        del step
        return False


def _quiet_aborted_reads(unraisable: Any) -> None:
    """Drops the tracebacks of reads that were under way when another failed; that failure itself is raised."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
