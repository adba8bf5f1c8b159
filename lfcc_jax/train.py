"""A whole run, from config to trained student, to be read from top to bottom."""

import contextlib
import dataclasses
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
from lfcc_jax.data.device_crop import central_crop
from lfcc_jax.digest import not_finite, some
from lfcc_jax.errors import UserError
from lfcc_jax.training import pictures
from lfcc_jax.training.checkpoint import Checkpoints
from lfcc_jax.training.config import as_dict, read_config
from lfcc_jax.training.distillation import Images, build, count_steps, teacher_network
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.preemption import Preempted, watch_signals
from lfcc_jax.training.processes import check_agreement, software
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
from lfcc_jax.training.summary import describe_student, read_summary, spectra, summarize, summary_table
from lfcc_jax.training.workdir import claim_workdir


class DivergedError(UserError):
    """The loss, the state or an evaluation became NaN or infinite."""


def train_and_evaluate(config: Mapping[str, Any], workdir: epath.PathLike) -> dict[str, Any]:
    """Trains a student, with a teacher or without, and evaluates it.

    Without a teacher this is plain training, which is how teachers and baselines are made. Called again with the same
    config and work directory, a run that was stopped or killed goes on where its last checkpoint stands, and ends with
    the same weights, bit for bit, as one that never stopped.

    Args:
      config: an `ml_collections.ConfigDict` or a dict, with the keys of `training.config.RunConfig`.
      workdir: where the run lives. It gets `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` (on a
        local disk, where TensorFlow is installed), and at the end `student/`, `summary.json`, `learning_curves.png`,
        `spectra.png`.

    Returns:
      What `summary.json` holds: accuracies, sizes, times.

    Raises:
      UserError: for a config, data set, teacher or work directory that will not do, before anything is computed; and
        `DivergedError`, a kind of it, if the loss, the state or an evaluation is NaN or infinite. Nothing is saved
        then, and earlier checkpoints are kept.
      Preempted: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    with contextlib.ExitStack() as held:  # the lock of the work directory
        return _train_and_evaluate(config, workdir, held)


def _train_and_evaluate(
    config: Mapping[str, Any], workdir: epath.PathLike, held: contextlib.ExitStack
) -> dict[str, Any]:
    # -- The run and its devices ---------------------------------------------------------------------------------------
    run = read_config(config)
    workdir = storage.resolve(workdir, "--workdir")
    mesh = create_mesh(**checked_arguments(create_mesh, run.mesh, "config.mesh"))
    check_agreement({"config": as_dict(config), "software": software()})
    check_batch_size(run.batch_size, mesh, "config.batch_size")

    # -- Images --------------------------------------------------------------------------------------------------------
    splits = data.open_splits(**checked_arguments(data.open_splits, run.data, "config.data"))
    total_steps = count_steps(run, len(splits.train.examples))
    steps_per_epoch = data.steps_per_epoch(splits.train, run.batch_size)
    images = Images(
        splits.train.num_classes, splits.image_size, splits.train.image_channels, len(splits.train.examples)
    )

    # -- Networks, losses with their heads and weights, and the optimizer ----------------------------------------------
    distillation = build(run, images)  # every name and key is looked at before a file is read
    inputs = {"train": data.fingerprint(splits.train), "test": data.fingerprint(splits.test)}
    if run.student.get("checkpoint"):
        start_made = _describe(storage.resolve(run.student["checkpoint"], "config.student.checkpoint"))
    teacher = teacher_variables = None
    if run.teacher.get("name"):
        path = run.teacher.get("checkpoint")
        taught = [f"config.losses.{name}" for name, method in distillation.losses.items() if method.needs_teacher]
        if path:
            path = storage.resolve(path, "config.teacher.checkpoint")
            made = _describe(path)
            teacher = teacher_network(run, images, made=made)
            teacher_variables = models.load_variables(path, teacher, weight_shardings(teacher.variable_shapes(), mesh))
            inputs["teacher"] = _identity(made, teacher_variables)
            distillation = build(run, images, teacher)
        elif taught:
            raise UserError(
                f"config.teacher.checkpoint: missing, and {taught[0]} needs a teacher; give the work directory of the "
                "run that trained it, for example one with --config=FILE:method=teacher"
            )
        else:  # a baseline: the teacher would only be compared with it
            distillation = dataclasses.replace(distillation, teacher=None)
    student = distillation.student

    # -- Batches -------------------------------------------------------------------------------------------------------
    splits = data.load(splits)
    if splits.resident:
        batches = data.train_indices(splits.train, run.batch_size, seed=run.seed)
    else:
        crops = {"image_size": splits.image_size, "scale": splits.scale, "workers": splits.workers}
        batches = data.train_batches(splits.train, run.batch_size, seed=run.seed, **crops)

    # -- State: fresh or restored --------------------------------------------------------------------------------------
    shapes = distillation.state_shapes()
    placement = weight_shardings(shapes, mesh)
    start = None
    if path := run.student.get("checkpoint"):
        start = models.load_variables(path, student, placement.student)
        inputs["student"] = _identity(start_made, start)
    # All was accepted that can be before something is computed.
    check_agreement(inputs)
    num_bytes = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
    workdir = claim_workdir(workdir, config, inputs, held, num_bytes)
    if (summary := read_summary(workdir)) is not None:
        say(f"this run has ended already; its summary is in {workdir}")
        return summary
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(
        jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placement), total_steps
    )
    window: dict[str, np.ndarray] = {}  # the metrics of each step since the last row of metrics.jsonl
    if restored:
        state, about = restored
        batches.set_state(about["data"])
        window = {name: np.asarray(values, np.float32) for name, values in about.get("window", {}).items()}
    else:
        # Random numbers are slow to compile and drawn once: on a CPU, without optimization in a third of the time.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        state = jax.jit(distillation.init, out_shardings=placement, compiler_options=options)(jax.random.key(run.seed))
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
        + f"by {' + '.join(distillation.losses)}; {len(splits.train.examples):,} images, batch {run.batch_size}, "
        f"{total_steps:,} steps on {mesh.size} {jax.devices()[0].device_kind} device(s)"
    )
    if first_step:
        say(f"goes on from step {first_step} of {workdir}")

    # -- Programs ------------------------------------------------------------------------------------------------------
    prepare = _test_images(splits, student)
    train_step = distillation.train_step(mesh, splits.augmentation, resident=splits.resident)

    def read_test_batches() -> Iterator[dict[str, Any]]:
        crop = {"crop": student.crop_fraction, "interpolation": student.interpolation}
        return data.eval_batches(
            splits.test, run.batch_size, image_size=splits.image_size, workers=splits.workers, **crop
        )

    test_batches = functools.partial(iter, list(read_test_batches())) if splits.resident else read_test_batches
    evaluate = Evaluator(student, teacher, teacher_variables, test_batches, mesh, prepare)

    def evaluate_now(step: int) -> dict[str, float]:
        results = evaluate(state.evaluated)
        if wrong := {name: value for name, value in results.items() if not np.isfinite(value)}:
            raise _diverged(f"the evaluation after step {step}: {_values(wrong)}", checkpoints)
        return results

    writer = MetricsWriter(workdir, first_step)
    say("compiling ...")
    # A run that was stopped after its last step is evaluated again: what is left of metrics.jsonl may lack that row.
    if first_step in (0, total_steps):
        results = evaluate_now(first_step)
        if all(row["step"] != first_step for row in read_metrics(workdir)):
            epoch = first_step / steps_per_epoch
            writer.write(first_step, {"epoch": epoch} | {f"test/{name}": value for name, value in results.items()})
    if first_step == 0 and teacher:
        say(f"the teacher's test accuracy is {results['teacher_accuracy']:.4f}")
    if first_step < total_steps:
        began = time.monotonic()
        size = splits.train.image_size or splits.image_size
        arguments = distillation.step_arguments(mesh, run.batch_size, (size, size, splits.train.image_channels))
        if splits.resident:
            arguments = (*arguments[:2], batches.shapes())
        train_step = train_step.lower(*arguments).compile()
        say(f"compiled the training step in {time.monotonic() - began:.1f} s")

    # -- Loop ----------------------------------------------------------------------------------------------------------
    eval_every = max(1, round(run.eval_every_epochs * steps_per_epoch))
    stops = [n for n in (run.log_every_steps, eval_every, run.checkpoint_every_steps) if n]
    progress = Progress(total_steps, steps_per_epoch, run.batch_size, first_step)
    pending = []
    step = first_step
    with (
        watch_signals() as told_to_stop,  # closed last, so that a late signal does not interrupt a save
        contextlib.closing(checkpoints),
        contextlib.closing(writer),
        contextlib.closing(batches),
    ):
        while step < total_steps:
            count = _steps_until_next(step, total_steps, *stops) if splits.resident else 1
            batch = batches.take(count) if splits.resident else next(batches)
            state, metrics = train_step(state, teacher_variables, batch)
            step += count
            pending.append((metrics, count))
            log = step % run.log_every_steps == 0
            evaluating = step % eval_every == 0 or step == total_steps
            saving = evaluating or (run.checkpoint_every_steps and step % run.checkpoint_every_steps == 0)
            stopping = told_to_stop.is_set()
            if not (log or saving or stopping):
                continue

            # Nothing is saved, and no run ends, before all that led to it was seen to be finite.
            new = _per_step(pending)
            progress.pause(step)
            _check_metrics(new, step, checkpoints)
            if (saving or stopping) and (wrong := not_finite(state)):
                raise _diverged(f"after step {step}, {some(wrong)} contains NaN or infinity", checkpoints)
            window = {name: np.concatenate([window[name], v]) if window else v for name, v in new.items()}
            pending = []
            results = evaluate_now(step) if evaluating else None
            if log or saving:  # and not where a run happens to be stopped: its rows are those of one that is not
                means = {name: float(np.mean(values)) for name, values in window.items()} | {
                    "learning_rate": float(distillation.learning_rate(step - 1)),
                    "images_per_second": progress.images_per_second,
                }
                row = {"epoch": step / steps_per_epoch} | {f"train/{name}": value for name, value in means.items()}
                window = {}
                if log and (line := progress.line(step, means)):
                    say(line)
                if results:
                    row |= {f"test/{name}": value for name, value in results.items()}
                    say(
                        f"epoch {step / steps_per_epoch:g}: test "
                        + "  ".join(f"{k} {v:.4f}" for k, v in results.items() if "/" not in k)
                    )
                writer.write(step, row)
            if saving or stopping:
                about = {
                    "data": batches.state,
                    "window": {name: values.tolist() for name, values in window.items()},
                }
                checkpoints.save(step, state, about, results and results["accuracy"])
            if stopping and step < total_steps:
                raise Preempted(
                    f"stopped at step {step} of {total_steps}, saved in {workdir}; the same command goes on"
                )
            progress.resume(step)

    # -- Final outputs -------------------------------------------------------------------------------------------------
    rows = read_metrics(workdir)
    summary = summarize(run, distillation, splits.train.name, results, rows, total_steps, sizes, mesh)
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


def _describe(path: epath.PathLike) -> dict[str, Any]:
    made = models.describe(path)
    if "digests" not in made:
        say(f"{path} was saved without digests, so damage to its variables cannot be detected")
    return made


def _identity(made: Mapping[str, Any], variables: Any) -> dict[str, str]:
    """Returns what identifies a network among the inputs of a run."""
    return {"name": made["name"], "digest": models.fingerprint(made, variables)[:12]}


def _test_images(splits: data.Splits, student: models.Network) -> Callable[[jax.Array], jax.Array]:
    """Returns what happens to test images on the device: resizing as the student's weights want it, if at all."""
    if not splits.resized:
        return to_float
    return functools.partial(
        central_crop, size=splits.image_size, crop=student.crop_fraction, interpolation=student.interpolation
    )


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _steps_until_next(step: int, total_steps: int, *every: int) -> int:
    """Returns how many steps there are to the next multiple of one of `every`, or to the end."""
    return min(total_steps - step, *(n - step % n for n in every))


def _per_step(pending: list[tuple[dict[str, jax.Array], int]]) -> dict[str, np.ndarray]:
    """Returns each metric of each step, from the metrics of one step or of several, and their number."""
    parts = [
        {name: np.atleast_1d(values)[:count] for name, values in metrics.items()}
        for metrics, count in jax.device_get(pending)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_metrics(values: Mapping[str, np.ndarray], step: int, checkpoints: Checkpoints) -> None:
    """Raises `DivergedError` unless all metrics are finite, those of the steps up to `step`."""
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
        first = int(np.argmin(finite))
        wrong = {name: float(v[first]) for name, v in values.items() if not np.isfinite(v[first])}
        raise _diverged(f"step {step - len(finite) + 1 + first}: {_values(wrong)}", checkpoints)


def _values(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} is {value}" for name, value in metrics.items())


def _diverged(what: str, checkpoints: Checkpoints) -> DivergedError:
    checkpoints.wait()
    last = checkpoints.latest_step
    return DivergedError(
        f"{what}; "
        + ("nothing was saved" if last is None else f"the last checkpoint is of step {last}")
        + ". The same command would end here again: try a lower learning rate, a longer warm-up or "
        "optimizer.clip_norm, in a new --workdir"
    )
