"""A whole run, from config to trained student, in order."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

from lfcc_jax import data, models, runtime, storage
from lfcc_jax.arguments import checked_arguments
from lfcc_jax.digest import not_finite, some
from lfcc_jax.errors import UserError
from lfcc_jax.training import feeds, pictures
from lfcc_jax.training.checkpoint import Checkpoints
from lfcc_jax.training.config import as_dict, at, read_config, teacher_key, with_given
from lfcc_jax.training.distillation import build
from lfcc_jax.training.evaluation import Evaluator
from lfcc_jax.training.metrics import StepMetrics, first_not_finite
from lfcc_jax.training.parts import check_parts
from lfcc_jax.training.preemption import Preempted, watch_signals
from lfcc_jax.training.probe import Probe, open_probe
from lfcc_jax.training.processes import check_agreement, software
from lfcc_jax.training.report import MetricsWriter, Progress, log, read_metrics
from lfcc_jax.training.sharding import check_batch_size, create_mesh, on_host, placed, to_global, weight_shardings
from lfcc_jax.training.state import TrainState
from lfcc_jax.training.summary import class_names_of, describe_student, sizes_of, spectra, summarize, summary_table
from lfcc_jax.training.workdir import claim_workdir, finished_summary


class DivergedError(UserError):
    """The loss, the state or an evaluation became NaN or infinite."""


def train_and_evaluate(
    config: Mapping[str, Any], workdir: epath.PathLike, *, teacher: Any = None, student: Any = None
) -> dict[str, Any]:
    """Trains a student, with or without a teacher, and evaluates it.

    Without a teacher this is plain training, for teachers and baselines. Called again with the same config and work
    directory, an interrupted run resumes from its last checkpoint, and ends with the same weights, bit for bit, as an
    uninterrupted one (on a GPU, up to rounding). On a CPU, the process may keep the memory that steps free; see
    `runtime.keep_freed_memory`.

    Args:
      config: An `ml_collections.ConfigDict` or a dict, with the keys of `training.config.RunConfig`.
      workdir: Directory of the run, for `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` (on a
        local disk, where TensorFlow is installed), and at the end `student/`, `summary.json`, `learning_curves.png`,
        `spectra.png`.
      teacher: A network with its weights, in place of `config.teacher`; see `models.adapters.adapt`. Several teachers
        are a dict, `{"dino": network}`, next to those that `config.teacher` names.
      student: A network, in place of `config.student`. It is trained from the weights that it comes with, if any.

    Returns:
      The contents of `summary.json`: accuracies, sizes, times.

    Raises:
      UserError: if the config, data set, teacher or work directory is invalid, before any computation.
      DivergedError: if the loss, the state or an evaluation is NaN or infinite. Nothing is saved then, and earlier
        checkpoints are kept.
      Preempted: after SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    with contextlib.ExitStack() as held:  # the lock of the work directory
        given = {"teacher": teacher, "student": student}
        return _train_and_evaluate(config, workdir, {k: v for k, v in given.items() if v is not None}, held)


def _train_and_evaluate(
    config: Mapping[str, Any], workdir: epath.PathLike, given: Mapping[str, Any], held: contextlib.ExitStack
) -> dict[str, Any]:
    # -- The run -------------------------------------------------------------------------------------------------------
    config = with_given(config, given)
    run = read_config(config)
    workdir = storage.resolve(workdir, "--workdir")
    mesh_settings = checked_arguments(create_mesh, run.mesh, "config.mesh")
    check_agreement({"config": as_dict(config), "software": software()})
    # Networks that are Python objects are compared first, below.
    if not given and (summary := finished_summary(workdir, config)) is not None:
        log(f"this run has already finished; see {workdir / 'summary.json'}")
        return summary

    # -- Images, devices, networks, losses, optimizer: validate the whole config before reading any large file ---------
    inputs = data.open_inputs(**checked_arguments(data.open_inputs, run.data, "config.data"))
    runtime.keep_freed_memory(run.batch_size * inputs.image_size**2)
    mesh = create_mesh(**mesh_settings)
    check_batch_size(run.batch_size, mesh, "config.batch_size")
    check_parts(run.images_at_once, run.batch_size, mesh)
    probe_images = open_probe(**checked_arguments(open_probe, run.probe, "config.probe", {"inputs": inputs}))
    saved_teachers = {name: _Saved(block, teacher_key(name)) for name, block in run.teachers.items()}
    saved_student = _Saved(run.student, "config.student")
    distillation = build(run, inputs.images, {n: saved.description for n, saved in saved_teachers.items()}, given)
    distillation = distillation.without(
        [
            name
            for name, teacher in distillation.teachers.items()
            if not saved_teachers[name].path and getattr(teacher, "weights", None) is None
        ]
    )
    for network in (distillation.student, *distillation.teachers.values()) if probe_images else ():
        if "pooled" not in network.output_shapes().features:
            raise UserError(f"config.probe needs networks with a feature `pooled`, which {network.name} lacks")
    student, teachers, total_steps = distillation.student, distillation.teachers, distillation.total_steps
    steps_per_epoch = inputs.steps_per_epoch(run.batch_size)
    identities = inputs.fingerprints()
    teacher_variables, initial_variables = {}, None
    for name, teacher in teachers.items():
        teacher_variables[name], identities[at("teacher", name)] = saved_teachers[name].load(teacher, mesh)
    if saved_student.path:
        initial_variables, identities["student"] = saved_student.load(student, mesh)
    elif isinstance(student, models.Adapter):
        identities["student"] = student.identity()
    inputs = inputs.load(log)

    # -- Work directory, data feed, and state: fresh or restored -------------------------------------------------------
    check_agreement(identities)
    shapes = distillation.state_shapes()
    num_bytes = sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
    workdir = claim_workdir(workdir, config, identities, held, num_bytes)
    if given and (summary := finished_summary(workdir, config)) is not None:
        log(f"this run has already finished; see {workdir / 'summary.json'}")
        return summary
    feed = feeds.create(inputs, mesh, run.batch_size, run.seed, run.log_every_steps)
    checkpoints = Checkpoints(workdir / "checkpoints")
    if restored := checkpoints.restore(placed(shapes, mesh), total_steps):
        state, about = restored
        feed.restore(about["data"])
        metrics = StepMetrics(about["window"])
    else:
        state = distillation.create_state(mesh, run.seed)
        state = state.with_student(initial_variables) if saved_student.path else state
        metrics = StepMetrics()
    del initial_variables  # frees its arrays
    step = first_step = int(state.step)

    # -- Startup summary -----------------------------------------------------------------------------------------------
    sizes = sizes_of(shapes)
    if first_step == 0:
        log(parameter_overview.get_parameter_overview(shapes.params["student"], include_stats=False))
    log(
        f"{run.student['name']} ({sizes['student']:,} parameters, {sizes['heads']:,} in heads) "
        + (f"learns from {' + '.join(run.teacher_networks[name] for name in teachers)} " if teachers else "")
        + f"by {' + '.join(distillation.losses)}; {inputs.images.count:,} images, batch {run.batch_size}, "
        f"{total_steps:,} steps on {mesh.size} {jax.devices()[0].device_kind} device(s)"
    )
    if first_step:
        log(f"resuming {workdir} from step {first_step}")

    # -- Programs, and the evaluation before training ------------------------------------------------------------------
    log("compiling ...")
    view = {"crop_fraction": student.crop_fraction, "interpolation": student.interpolation}
    prepare, test_batches = inputs.prepare_test(**view), inputs.test_batches(run.batch_size, **view)
    evaluate = Evaluator(student, teachers, teacher_variables, test_batches, mesh, prepare, run.images_at_once)
    probe = probe_images and Probe(probe_images, student, teachers, teacher_variables, run.batch_size, mesh)

    def results_at(step: int, state: TrainState) -> dict[str, float]:
        results = evaluate(state.evaluated)
        if probe and (step == total_steps or (step and probe_images.every_evaluation)):
            results |= probe(state.evaluated)
        return _check_finite(results, step, checkpoints)

    writer = MetricsWriter(workdir, first_step)
    # A run that stopped after its last step is evaluated again, because metrics.jsonl may lack that row.
    if first_step in (0, total_steps):
        results = results_at(first_step, state)
        if all(row["step"] != first_step for row in read_metrics(workdir)):
            writer.write(first_step, {"epoch": first_step / steps_per_epoch} | _prefixed("test", results))
    for name in teachers if first_step == 0 else ():
        if at("teacher_accuracy", name) in results:
            log(f"{name or 'the teacher'}'s test accuracy is {results[at('teacher_accuracy', name)]:.4f}")
    train_step = distillation.train_step(mesh, inputs.augmentation, feed.program)
    if first_step < total_steps:
        start_time = time.monotonic()
        train_step = train_step.lower(*distillation.step_arguments(mesh), feed.shapes()).compile()
        log(f"compiled the training step in {time.monotonic() - start_time:.1f} s")

    # -- Loop ----------------------------------------------------------------------------------------------------------
    log_every, save_every = run.log_every_steps, run.checkpoint_every_steps or total_steps
    eval_every = max(1, round(run.eval_every_epochs * steps_per_epoch))
    progress = Progress(total_steps, steps_per_epoch, run.batch_size, first_step)
    with (
        watch_signals() as stop_request,  # exited last, so that a late signal does not interrupt a save
        contextlib.closing(checkpoints),
        contextlib.closing(writer),
        contextlib.closing(feed),
    ):
        while step < total_steps:
            until_next = min(n - step % n for n in (log_every, eval_every, save_every))
            batch, count = feed.take(min(until_next, total_steps - step))
            state, step_metrics = train_step(state, teacher_variables, batch)
            step += count
            metrics.add(step_metrics, count)
            logging = step % log_every == 0
            evaluating = step % eval_every == 0 or step == total_steps
            saving = evaluating or step % save_every == 0
            stopping = stop_request.is_set()
            if not (logging or saving or stopping):
                continue

            # Check every step since the last log for NaNs before saving anything.
            new = metrics.fetch()
            progress.pause(step)
            if nonfinite := first_not_finite(new):
                first, values = nonfinite
                raise _diverged(f"step {step - len(new['loss']) + 1 + first}: {_values(values)}", checkpoints)
            if (saving or stopping) and (nonfinite := not_finite(state)):
                raise _diverged(f"after step {step}, {some(nonfinite)} contains NaN or infinity", checkpoints)
            results = results_at(step, state) if evaluating else {}
            if logging or saving:  # not when stopping, so that the rows do not depend on interruptions
                means = metrics.take_means() | {
                    "learning_rate": float(distillation.learning_rate(step - 1)),
                    "images_per_second": progress.images_per_second,
                }
                epoch = step / steps_per_epoch
                if logging and (line := progress.line(step, means, feed.waited)):
                    log(line)
                if results:
                    shown = {k: v for k, v in results.items() if "/" not in k} or results
                    text = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
                    log(f"epoch {epoch:g}: test {text}")
                writer.write(step, {"epoch": epoch} | _prefixed("train", means) | _prefixed("test", results))
            if saving or stopping:
                about = {"data": feed.state, "window": metrics.state}
                checkpoints.save(step, state, about, results.get("accuracy"))
            if stopping and step < total_steps:
                raise Preempted(
                    f"stopped at step {step} of {total_steps}, saved in {workdir}; the same command resumes it"
                )
            progress.resume(step)

    # -- Final outputs -------------------------------------------------------------------------------------------------
    rows = read_metrics(workdir)
    summary = summarize(run, distillation, inputs.train.name, results, rows, sizes, mesh)
    of_teachers = [saved.description for saved in saved_teachers.values() if saved.description]
    made = {"class_names": class_names_of(inputs.images, of_teachers, student.num_classes), "made_by": summary}
    models.save(workdir / "student", state.evaluated, describe_student(run, inputs.images, student) | made)
    some_images = to_global(next(iter(test_batches())), mesh)["image"]
    networks = {f"student {run.student['name']}": (student, state.evaluated)}
    for name, teacher in teachers.items():
        networks[f"teacher {run.teacher_networks[name]}"] = (teacher, teacher_variables[name])
    spectra_of = {name: spectra(*network, prepare, some_images, mesh) for name, network in networks.items()}
    if jax.process_index() == 0:
        pictures.learning_curves(workdir / "learning_curves.png", rows)
        pictures.spectra(workdir / "spectra.png", spectra_of)
        storage.write_json(workdir / "spectra.json", spectra_of)
        storage.write_json(workdir / "summary.json", summary)
    log(summary_table(summary))
    log(f"results written to {workdir}")
    return summary


class _Saved:
    """The weights of a network that is not initialized: those in the `checkpoint` of a config block, or its own."""

    def __init__(self, block: Mapping[str, Any], where: str):
        self.path, self.description, self._where = None, None, where
        if block.get("checkpoint"):
            self.path = storage.resolve(block["checkpoint"], f"{where}.checkpoint")
            self.description = models.describe(self.path)
            if "digests" not in self.description:
                log(f"{self.path} was saved without digests, so damage to its variables cannot be detected")

    def load(self, network: models.Network | models.Adapter, mesh: jax.sharding.Mesh) -> tuple[Any, dict[str, str]]:
        """Returns its variables, and its identity for `inputs.json`."""
        if self.path is None:
            if wrong := not_finite(network.weights):
                raise UserError(f"{self._where}: {network.name} cannot be used: {some(wrong)} contains NaN or infinity")
            variables = jax.device_put(on_host(network.weights), weight_shardings(network.variable_shapes(), mesh))
            return variables, network.identity()
        variables = models.load_variables(self.path, network, weight_shardings(network.variable_shapes(), mesh))
        digest = models.fingerprint(self.description, variables)[:12]
        return variables, {"name": self.description["name"], "digest": digest}


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _values(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} is {value}" for name, value in metrics.items())


def _check_finite(results: dict[str, float], step: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Returns the results of an evaluation, or raises `DivergedError` if one of them is NaN or infinite."""
    if nonfinite := {name: value for name, value in results.items() if not np.isfinite(value)}:
        raise _diverged(f"the evaluation after step {step}: {_values(nonfinite)}", checkpoints)
    return results


def _diverged(problem: str, checkpoints: Checkpoints) -> DivergedError:
    checkpoints.wait()
    last = checkpoints.latest_step
    return DivergedError(
        f"{problem}; "
        + ("nothing was saved" if last is None else f"the last checkpoint is at step {last}")
        + ". Rerunning would diverge again; try a lower learning rate, a longer warm-up or "
        "optimizer.clip_norm, in a new --workdir"
    )
