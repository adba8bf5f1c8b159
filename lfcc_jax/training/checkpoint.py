"""Checkpoints of a run: its state and its data iterator, saved together."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from lfcc_jax.errors import UserError
from lfcc_jax.training.report import say

_policy = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of one run, saved in the background. The last two and the best are kept.

    Two, so that a run survives if the newest is damaged. The best is the one with the highest `accuracy` among those
    saved with metrics.
    """

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)
        best = _policy.BestN(get_metric_fn=lambda m: m["accuracy"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy.AnyPreservationPolicy([_policy.LatestN(2), best]),
            cleanup_tmp_directories=True,
        )
        self._manager = _CheckpointManager(self._directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state and the data iterator's state. Returns once they are copied; writing goes on behind.

        Args:
          step: how many updates were made.
          state: a tree of arrays.
          data: the iterator's state, as JSON; the same in every process, since all advance together.
          metrics: of an evaluation at this step, if there was one.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        self._manager.save(step, args=args, metrics=metrics)

    def restore(self, abstract_state: Any) -> tuple[Any, Any] | None:
        """Returns state and data of the newest checkpoint that can be read, or None if there is none at all.

        Those that cannot be read are moved aside to `damaged/` once an older one was.

        Args:
          abstract_state: shapes, dtypes and shardings that the state shall have.

        Raises:
          UserError: if there are checkpoints, and none can be read. Then all are left as they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for tried, step in enumerate(steps):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore())
            # Stays in place if a read fails: the others may speak up at any time after.
            hook, sys.unraisablehook = sys.unraisablehook, _quiet_aborted_reads
            restored = None
            try:
                restored = self._manager.restore(step, args=args)
            except Exception as error:  # Orbax raises everything from JSONDecodeError to bare Exception here.
                reasons.append(" ".join(str(error).split())[:200])
            # All processes must go on from the same step.
            if multihost_utils.process_allgather(np.asarray(restored is not None)).all():
                sys.unraisablehook = hook if not reasons else sys.unraisablehook
                self._set_aside(steps[:tried], reasons)
                return restored.state, restored.data
        if steps:
            reason = reasons[0] if reasons else "another process could not"
            raise UserError(f"none of the checkpoints {steps} in {self._directory} can be read; the newest: {reason}")
        return None

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and stops the background threads."""
        self._manager.close()

    def _set_aside(self, steps: Sequence[int], reasons: Sequence[str]) -> None:
        if not steps:
            return
        damaged = self._directory.parent / "damaged"
        if jax.process_index() == 0:
            damaged.mkdir(exist_ok=True)
            for step in steps:
                target = damaged / str(step)
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()
        for step, reason in zip(steps, reasons, strict=False):
            say(f"checkpoint {step} is damaged, and now in {damaged}: {reason}")


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
