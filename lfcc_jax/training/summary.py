"""Reports of a finished run: its summary, its student's description, and feature spectra."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from lfcc_jax import models, storage
from lfcc_jax.data import Images
from lfcc_jax.errors import UserError
from lfcc_jax.models import Adapter, Network
from lfcc_jax.spectrum import radial_spectrum
from lfcc_jax.training.config import RunConfig, at, teacher_of
from lfcc_jax.training.distillation import Distillation
from lfcc_jax.training.report import log, table
from lfcc_jax.training.sharding import replicated
from lfcc_jax.training.state import TrainState

# Key in the summary and metric of the evaluation, for each teacher.
_COMPARISONS = {"teacher_top1": "teacher_accuracy", "agreement": "agreement", "kl_to_teacher": "kl"}
# Beginnings of the metrics of `training.probe`.
_OF_PROBES = ("knn", "linear", "teacher_knn", "teacher_linear")


def summarize(
    run: RunConfig,
    distillation: Distillation,
    dataset: str,
    results: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    mesh: Mesh,
) -> dict[str, Any]:
    """Returns the contents of `summary.json`.

    Args:
      run: The run's config.
      distillation: Networks and losses of the run.
      dataset: Name of the data set.
      results: Evaluation after the last step.
      rows: Rows of `metrics.jsonl`, for the best accuracy and the speed.
      sizes: Number of parameters of `student` and `heads`.
      mesh: Devices of the run.
    """
    tests = {
        row["step"]: row["test/accuracy"] for row in rows if row["step"] > 0 and row.get("test/accuracy") is not None
    }
    if "accuracy" in results:
        tests[distillation.total_steps] = results["accuracy"]
    best_step = max(sorted(tests), key=tests.__getitem__, default=None)
    speed = next((row["train/images_per_second"] for row in rows[::-1] if row.get("train/images_per_second")), None)
    return {
        "dataset": dataset,
        "teacher": " + ".join(run.teacher_networks[name] for name in distillation.teachers) or None,
        "student": run.student["name"],
        "losses": " + ".join(distillation.losses),
        "seed": run.seed,
        "epochs": run.epochs,
        "steps": distillation.total_steps,
        "parameters": sizes["student"],
        "head_parameters": sizes["heads"],
        "top1_last": results.get("accuracy"),
        "top1_best": tests.get(best_step),
        "best_step": best_step,
        "top5_last": results.get("top5"),
        "calibration_error": results.get("calibration_error"),
        **{
            at(key, teacher): results.get(at(metric, teacher))
            for teacher in distillation.teachers or [""]
            for key, metric in _COMPARISONS.items()
        },
        **{
            at(f"cka_{stage}", teacher_of(name)): value
            for (name, _, stage), value in ((key.partition("/"), value) for key, value in results.items())
            if stage
        },
        **{key: results[key] for key in results if key.startswith(_OF_PROBES)},
        "seconds_per_step": speed and run.batch_size / speed,
        "images_per_second": speed,
        "hardware": f"{mesh.size} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def sizes_of(shapes: TrainState) -> dict[str, int]:
    """Returns the number of parameters of the `student` and of all `heads`."""
    return {part: sum(leaf.size for leaf in jax.tree.leaves(shapes.params[part])) for part in ("student", "heads")}


def read_summary(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None if it is missing or damaged."""
    path = workdir / "summary.json"
    if not storage.exists(path):
        return None
    try:
        summary = storage.read_json(path)
    except UserError as error:
        log(f"{error}; repeating the end of the run")
        return None
    return summary if isinstance(summary, dict) and summary else None


def describe_student(run: RunConfig, images: Images, student: Network | Adapter) -> dict[str, Any]:
    """Returns the arguments of `models.create` for the run's student, in the form that `models.save` takes."""
    overrides = {key: value for key, value in run.student.items() if key not in ("name", "checkpoint")}
    name = run.student["name"]
    return {
        "name": models.full_name(name) if ":" in name else name,
        "num_classes": student.num_classes,
        "image_size": images.size,
        "overrides": {"image_channels": images.channels} | overrides,
    }


def class_names_of(images: Images, teachers: Sequence[Mapping[str, Any]], num_classes: int) -> Sequence[str]:
    """Returns the names of the student's classes: those of the data, or else of a teacher; none if there are none.

    Args:
      images: The run's images.
      teachers: Descriptions of the teachers' saved networks.
      num_classes: Number of the student's classes.
    """
    known = [images.class_names, *(teacher.get("class_names", ()) for teacher in teachers)]
    return next((names for names in known if names and len(names) == num_classes), ())


def spectra(
    network: Network | Adapter, variables: Any, prepare: Callable[[jax.Array], jax.Array], images: jax.Array, mesh: Mesh
) -> dict[str, dict[str, list[float]]]:
    """Returns the radial spectrum of each stage's feature map, in cycles per image.

    Args:
      network: Network to analyze.
      variables: Its variables.
      prepare: Converts uint8 images to floats in [0, 1].
      images: uint8 images, `[batch, height, width, channels]`.
      mesh: Devices of the images.
    """

    def compute(variables: Any, images: jax.Array) -> dict[str, Any]:
        features = network.apply(variables, prepare(images), train=False).features
        return {stage: radial_spectrum(x) for stage, x in features.items() if x.ndim == 4}

    results = jax.device_get(jax.jit(compute, out_shardings=replicated(mesh))(variables, images))
    sizes = network.feature_info()
    return {
        stage: {
            "cycles_per_image": (frequencies * min(sizes[stage].height, sizes[stage].width)).tolist(),
            "power": power.tolist(),
        }
        for stage, (frequencies, power) in results.items()
    }


def summary_table(summary: Mapping[str, Any]) -> str:
    """Returns what a summary contains as a Markdown table."""
    return table(["result", "value"], [[name, _show(value)] for name, value in summary.items() if value is not None])


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 100 else f"{value:,.0f}"
    return str(value)
