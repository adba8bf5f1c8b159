"""A whole run, from config to trained student, to be read from top to bottom."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from lfcc_jax import data, models, storage
from lfcc_jax.arguments import checked_arguments
from lfcc_jax.data.resize import central_crop
from lfcc_jax.errors import UserError
from lfcc_jax.training import pictures
from lfcc_jax.training.assembly import Images, assemble, count_steps, teacher_network
from lfcc_jax.training.checkpoint import Checkpoints
from lfcc_jax.training.config import read_config
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.preemption import Preempted, watch_signals
from lfcc_jax.training.report import MetricsWriter, Progress, read_metrics, say
from lfcc_jax.training.resident import ResidentFeed
from lfcc_jax.training.sharding import (
    DevicePrefetch,
    check_batch_size,
    create_mesh,
    to_global,
    weight_shardings,
)
from lfcc_jax.training.state import start_from
from lfcc_jax.training.step import to_float
from lfcc_jax.training.summary import describe_student, spectra, summarize, summary_table
from lfcc_jax.training.workdir import claim_workdir


class DivergedError(UserError):
    """The loss or its gradient became NaN or infinite."""


def train_and_evaluate(config: Mapping[str, Any], workdir: epath.PathLike) -> dict[str, Any]:
    """Trains a student, with a teacher or without, and evaluates it.

    Without a teacher this is plain training, which is how teachers and baselines are made. Called again with the same
    config and work directory, a run that was stopped or killed goes on where its last checkpoint stands, and ends with
    the same weights, bit for bit, as one that never stopped.

    Args:
      config: an `ml_collections.ConfigDict` or a dict, with the keys of `training.config.RunConfig`.
      workdir: where the run lives. It gets `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` (where
        TensorFlow is installed), and at the end `student/`, `summary.json`, `learning_curves.png`, `spectra.png`.

    Returns:
      What `summary.json` holds: accuracies, sizes, times.

    Raises:
      UserError: for a config, data set, teacher or work directory that will not do, before anything is computed; and
        `DivergedError`, a kind of it, if the loss does not stay finite. The last good checkpoint is kept.
      Preempted: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    # -- The run and its devices ---------------------------------------------------------------------------------------
    run = read_config(config)
    workdir = storage.resolve(workdir, "--workdir")
    mesh = create_mesh(**checked_arguments(create_mesh, run.mesh, "config.mesh"))
    check_batch_size(run.batch_size, mesh, "config.batch_size")

    # -- Images --------------------------------------------------------------------------------------------------------
    splits = data.open_splits(**checked_arguments(data.open_splits, run.data, "config.data"))
    total_steps = count_steps(run, len(splits.train.examples))
    steps_per_epoch = data.steps_per_epoch(splits.train, run.batch_size)
    images = Images(
        splits.train.num_classes, splits.image_size, splits.train.image_channels, len(splits.train.examples)
    )

    # -- Networks, losses with their heads and weights, and the optimizer ----------------------------------------------
    assembly = assemble(run, images)  # every name and key is looked at before a file is read
    if run.student.get("checkpoint"):
        models.describe(storage.resolve(run.student["checkpoint"], "config.student.checkpoint"))  # read below
    teacher = teacher_variables = None
    if run.teacher.get("name"):
        path = run.teacher.get("checkpoint")
        if not path:
            raise UserError("config.teacher.checkpoint: missing; give the work directory of the run that trained it")
        path = storage.resolve(path, "config.teacher.checkpoint")
        teacher = teacher_network(run, images, made=models.describe(path))
        teacher_variables = models.load_variables(path, teacher, weight_shardings(teacher.variable_shapes(), mesh))
        assembly = assemble(run, images, teacher)
    student = assembly.student

    # -- Batches -------------------------------------------------------------------------------------------------------
    splits = data.load(splits)
    if splits.resident:
        batches = data.train_numbers(splits.train, run.batch_size, seed=run.seed)
    else:
        crops = {"image_size": splits.image_size, "scale": splits.scale, "workers": splits.workers}
        batches = data.train_batches(splits.train, run.batch_size, seed=run.seed, **crops)

    # -- State: fresh or restored --------------------------------------------------------------------------------------
    shapes = assembly.state_shapes()
    placement = weight_shardings(shapes, mesh)
    start = None
    if path := run.student.get("checkpoint"):
        start = models.load_variables(path, student, placement.student)
    # All was accepted that can be before something is computed.
    workdir = claim_workdir(workdir, config, sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes)))
    if storage.exists(workdir / "summary.json"):
        say(f"this run has ended already; its summary is in {workdir}")
        return storage.read_json(workdir / "summary.json")
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(
        jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placement)
    )
    if restored:
        state, data_state = restored
        batches.set_state(data_state)
    else:
        # Random numbers are slow to compile and drawn once: on a CPU, without optimisation in a third of the time.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        state = jax.jit(assembly.init, out_shardings=placement, compiler_options=options)(jax.random.key(run.seed))
        if start is not None:
            state = start_from(state, start)
    del start  # its arrays would take memory beside the state's
    first_step = int(state.step)
    if splits.resident:
        batches = ResidentFeed(data.read_all(splits.train), batches, mesh, run.batch_size, run.log_every_steps)
    else:
        batches = DevicePrefetch(batches, mesh)

    # -- What there is, for a person to see ----------------------------------------------------------------------------
    if first_step == 0:
        say(parameter_overview.get_parameter_overview(shapes.student["params"], include_stats=False))
    sizes = {
        "student": _size(shapes.student["params"]),
        "heads": _size([h.get("params") for h in shapes.heads.values()]),
    }
    say(
        f"{run.student['name']} ({sizes['student']:,} parameters, {sizes['heads']:,} in heads) "
        + (f"learns from {run.teacher['name']} " if teacher else "")
        + f"by {' + '.join(assembly.losses)}; {len(splits.train.examples):,} images, batch {run.batch_size}, "
        f"{total_steps:,} steps on {mesh.size} {jax.devices()[0].device_kind} device(s)"
    )
    if first_step:
        say(f"goes on from step {first_step} of {workdir}")

    # -- Programs ------------------------------------------------------------------------------------------------------
    prepare = _test_images(splits, student)
    train_step = assembly.train_step(mesh, splits.augmentation, resident=splits.resident)

    def read_test_batches() -> Iterator[dict[str, Any]]:
        crop = {"crop": student.crop, "interpolation": student.interpolation}
        return data.eval_batches(
            splits.test, run.batch_size, image_size=splits.image_size, workers=splits.workers, **crop
        )

    test_batches = functools.partial(iter, list(read_test_batches())) if splits.resident else read_test_batches
    evaluate = Evaluator(student, teacher, teacher_variables, test_batches, mesh, prepare)
    writer = MetricsWriter(workdir, first_step)
    if first_step == 0:
        results = evaluate(state.evaluated)
        writer.write(0, {"epoch": 0.0} | {f"test/{name}": value for name, value in results.items()})
        if teacher:
            say(f"the teacher's test accuracy is {results['teacher_accuracy']:.4f}")
    if first_step < total_steps:
        began = time.monotonic()
        size = splits.train.image_size or splits.image_size
        arguments = assembly.step_arguments(mesh, run.batch_size, (size, size, splits.train.image_channels))
        if splits.resident:
            arguments = (*arguments[:2], batches.shapes())
        train_step = train_step.lower(*arguments).compile()
        say(f"compiled the training step in {time.monotonic() - began:.1f} s")

    # -- Loop ----------------------------------------------------------------------------------------------------------
    eval_every = max(1, round(run.eval_every_epochs * steps_per_epoch))
    stops = [n for n in (run.log_every_steps, eval_every, run.checkpoint_every_steps) if n]
    progress = Progress(total_steps, steps_per_epoch, run.batch_size, first_step)
    pending, calls = [], 0
    step = first_step
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(writer),
        contextlib.closing(batches),
        watch_signals() as told_to_stop,
    ):
        while step < total_steps:
            count = _steps_until_next(step, total_steps, *stops) if splits.resident else 1
            batch = batches.take(count) if splits.resident else next(batches)
            state, metrics = train_step(state, teacher_variables, batch)
            step, calls = step + count, calls + 1
            pending.append((metrics, count))
            log = step % run.log_every_steps == 0
            evaluating = step % eval_every == 0 or step == total_steps
            saving = evaluating or (run.checkpoint_every_steps and step % run.checkpoint_every_steps == 0)
            stopping = told_to_stop.is_set() or checkpoints.reached_preemption(calls)
            if not (log or saving or stopping):
                continue

            # Nothing is saved before all that led to it was seen to be finite.
            means = _finite_means(pending, step, checkpoints)
            pending = []
            progress.pause(step)
            means |= {
                "learning_rate": float(assembly.learning_rate(step - 1)),
                "images_per_second": progress.images_per_second,
            }
            row = {"epoch": step / steps_per_epoch} | {f"train/{name}": value for name, value in means.items()}
            if log:
                say(progress.line(step, means))
            results = None
            if evaluating:
                results = evaluate(state.evaluated)
                row |= {f"test/{name}": value for name, value in results.items()}
                say(
                    f"epoch {step / steps_per_epoch:g}: test "
                    + "  ".join(f"{k} {v:.4f}" for k, v in results.items() if "/" not in k)
                )
            writer.write(step, row)
            if saving or stopping:
                checkpoints.save(step, state, batches.state, results)
            if stopping and step < total_steps:
                raise Preempted(
                    f"stopped at step {step} of {total_steps}, saved in {workdir}; the same command goes on"
                )
            progress.resume(step)

    # -- Final outputs -------------------------------------------------------------------------------------------------
    rows = read_metrics(workdir)
    summary = summarize(run, assembly, splits.train.name, rows, total_steps, sizes, mesh)
    description = describe_student(run, images) | {"made_by": summary}
    models.save(workdir / "student", state.evaluated, description)
    some_images = to_global(next(test_batches()), mesh)["image"]
    networks = {f"student {run.student['name']}": (student, state.evaluated)}
    if teacher:
        networks[f"teacher {run.teacher['name']}"] = (teacher, teacher_variables)
    contents = {name: spectra(*network, prepare, some_images, mesh) for name, network in networks.items()}
    if jax.process_index() == 0:
        pictures.learning_curves(workdir / "learning_curves.png", rows)
        pictures.spectra(workdir / "spectra.png", contents)
        storage.write_json(workdir / "spectra.json", contents)
        storage.write_json(workdir / "summary.json", summary)
    say(summary_table(summary))
    say(f"results written to {workdir}")
    return summary


def _test_images(splits: data.Splits, student: models.Network) -> Callable[[jax.Array], jax.Array]:
    """Returns what happens to test images on the device: resizing as the student's weights want it, if at all."""
    if not splits.resized:
        return to_float
    return functools.partial(
        central_crop, size=splits.image_size, crop=student.crop, interpolation=student.interpolation
    )


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _steps_until_next(step: int, total_steps: int, *every: int) -> int:
    """Returns how many steps there are to the next multiple of one of `every`, or to the end."""
    return min(total_steps - step, *(n - step % n for n in every))


def _finite_means(
    pending: list[tuple[dict[str, jax.Array], int]], step: int, checkpoints: Checkpoints
) -> dict[str, float]:
    """Returns the mean of each metric over the steps up to `step`; raises `DivergedError` if one is not finite.

    Args:
      pending: metrics of one step or of several, and of how many.
      step: the last of them.
      checkpoints: of the run, for the message.
    """
    parts = [
        {name: np.atleast_1d(values)[:count] for name, values in metrics.items()}
        for metrics, count in jax.device_get(pending)
    ]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
        first = int(np.argmin(finite))
        wrong = {name: float(v[first]) for name, v in values.items() if not np.isfinite(v[first])}
        checkpoints.wait()
        good = checkpoints.latest_step
        raise DivergedError(
            f"step {step - len(finite) + 1 + first}: "
            + ", ".join(f"{name} is {value}" for name, value in wrong.items())
            + (f"; the last good checkpoint is that of step {good}. " if good is not None else "; nothing was saved. ")
            + "A lower learning rate, a longer warm-up or optimizer.clip_norm may help."
        )
    return {name: float(np.mean(v)) for name, v in values.items()}
