"""Checkpoints of a run: its state, and a record of what else is needed to resume, with digests of both."""

import contextlib
import functools
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
from lfcc_jax.training.processes import in_first_process
from lfcc_jax.training.report import log

_policy = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one run, saved in the background. The last two and the best are kept.

    If the newest is damaged, the run resumes from the one before. The best checkpoint is the one with the highest test
    accuracy, if any was saved with one.

    Args:
      directory: Directory of the checkpoints, with one subdirectory per step.
    """

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)
        self._best = _Best(_accuracies(self._directory))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy.AnyPreservationPolicy([_policy.LatestN(2), self._best])
        )
        storage.drop_background_errors()
        in_first_process(functools.partial(_delete_unfinished, self._directory))
        with storage.errors_in_one_line(f"cannot read {self._directory}"):
            self._manager = _CheckpointManager(self._directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: Mapping[str, Any], accuracy: float | None = None) -> None:
        """Saves a state. Returns once it is copied to the host; the write continues in the background.

        Args:
          step: Number of updates so far.
          state: A tree of finite arrays; see `digest.not_finite`.
          about: What else the run needs to resume, as JSON; the same in every process.
          accuracy: Test accuracy at this step, if it was evaluated.

        Raises:
          UserError: if there is already a later checkpoint, or a save fails.
        """
        record = {"step": step, "accuracy": accuracy, "about": about, "arrays": digests(state)}
        record = json.loads(json.dumps(record))  # as `restore` will read it
        signed = {"record": record, "sha256": _sha256(record)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(signed))
        self._best.accuracies[step] = accuracy
        with self._save_errors():
            saved = self._manager.save(step, args=args)
        if not saved:
            raise UserError(f"cannot save step {step}: {self._directory} already contains step {self.latest_step}")

    def restore(self, abstract_state: Any, last_step: int) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and `about` of the newest undamaged checkpoint, or None if there are no checkpoints.

        A checkpoint is damaged if it cannot be read, does not match its digests, or contains NaN or infinity. Damaged
        checkpoints are moved to `damaged/`, next to the directory, once an older one is restored.

        Args:
          abstract_state: Shapes, dtypes and shardings of the state.
          last_step: Number of steps of the whole run.

        Raises:
          UserError: if all checkpoints are damaged, or one is after `last_step`. Then none is moved.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if steps and steps[0] > last_step:
            raise UserError(
                f"{self._directory / str(steps[0])} is after the last step of this run, {last_step}; delete it if it "
                "is from another run; otherwise, the data set has changed"
            )
        reasons = {}
        for step in steps:
            result = self._read(step, abstract_state)
            if not isinstance(result, str):
                self._set_aside(reasons)
                return result
            reasons[step] = result
        if steps:
            newest = reasons[steps[0]]
            raise UserError(f"none of the checkpoints {steps} in {self._directory} can be used; the newest: {newest}")
        return None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves and stops the background threads."""
        with self._save_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Turns an error of this save, or of an earlier one still being written, into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            steps = []
            with contextlib.suppress(Exception):  # the directory may be gone
                steps = ocp.utils.checkpoint_steps(self._directory)
            last = f"the last checkpoint is at step {max(steps)}" if steps else "there is no checkpoint yet"
            raise UserError(f"cannot save to {self._directory}: {storage.one_line(error)}; {last}") from error

    def _read(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]] | str:
        """Returns state and `about` of a checkpoint, or the problem if it is damaged. All processes agree which."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore())
        # Left installed after a failure: aborted reads may report later.
        hook, sys.unraisablehook = sys.unraisablehook, _quiet_aborted_reads
        problem = ""
        try:
            read = self._manager.restore(step, args=args)
            record = _verified(read["record"], step)
        except Exception as error:  # Orbax raises any type here, from JSONDecodeError to bare Exception.
            problem = " ".join(str(error).split())[:200] or type(error).__name__
        if problem := _problem_of_any_process(problem):
            return problem
        sys.unraisablehook = hook
        if names := changes(record["arrays"], digests(read.state)):
            problem = f"{some(names)} differs from what was saved"
        elif names := not_finite(read.state):
            problem = f"{some(names)} contains NaN or infinity"
        if problem := _problem_of_any_process(problem):
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
            log(f"checkpoint {step} is damaged and was moved to {damaged}: {reason}")


class _Best(_policy.PreservationPolicy):
    """Preserves the checkpoint with the highest accuracy; among ties, the newest.

    After a restart, Orbax's `BestN` lacks the metrics of earlier checkpoints unless it stores them in separate files,
    and then one damaged file makes all checkpoints unusable.
    """

    def __init__(self, accuracies: dict[int, float | None]):
        self.accuracies = accuracies

    def should_preserve(
        self, checkpoints: Sequence[_policy.PolicyCheckpointInfo], *, context: _policy.PreservationContext
    ) -> Sequence[bool]:
        del context
        known = [(value, c.step) for c in checkpoints if (value := self.accuracies.get(c.step)) is not None]
        return [bool(known) and checkpoint.step == max(known)[1] for checkpoint in checkpoints]


def _delete_unfinished(directory: epath.Path) -> None:
    """Deletes what interrupted saves left behind.

    Orbax would delete it in the background, and a save would fail if two managers of one directory did so at once.
    """
    with storage.errors_in_one_line(f"cannot delete unfinished checkpoints in {directory}"):
        for path in ocp.utils.tmp_checkpoints(directory) if storage.exists(directory) else ():
            path.get().rmtree(missing_ok=True)


def _accuracies(directory: epath.Path) -> dict[int, float | None]:
    """Returns the accuracy of each checkpoint that has an undamaged record."""
    accuracies = {}
    for path in directory.iterdir() if storage.exists(directory) else ():
        try:
            step = int(path.name)
            accuracies[step] = _verified(ocp.JsonCheckpointHandler().restore(path / "record"), step)["accuracy"]
        except Exception:  # not a checkpoint, or damaged, which `restore` reports
            continue
    return accuracies


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _verified(signed: Mapping[str, Any], step: int) -> dict[str, Any]:
    record = signed["record"]
    if _sha256(record) != signed["sha256"]:
        raise ValueError("its record differs from what was saved")
    if record["step"] != step:
        raise ValueError(f"it was saved as step {record['step']}")
    return record


def _problem_of_any_process(problem: str) -> str:
    """Returns the problem, or a note if only another process has one: all must resume from the same step."""
    any_problem = multihost_utils.process_allgather(np.asarray(bool(problem))).any()
    return problem or ("another process could not read it" if any_problem else "")


class _CheckpointManager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False, because the training loop queries JAX's preemption service: see `StopRequest`.

        Orbax would query it with steps, some from a background thread, which moves its counter past the loop's.
        """
        del step
        return False


def _quiet_aborted_reads(unraisable: Any) -> None:
    """Drops the tracebacks of reads that were pending when another failed; only that failure is raised."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
