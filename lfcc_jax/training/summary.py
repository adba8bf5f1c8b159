"""What a finished run reports about itself: its summary, its student's description, and feature spectra."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lfcc_jax.models import Network
from lfcc_jax.spectrum import radial_spectrum
from lfcc_jax.training.assembly import Assembly, Images
from lfcc_jax.training.config import RunConfig
from lfcc_jax.training.report import table
from lfcc_jax.training.sharding import replicated


def summarize(
    run: RunConfig,
    assembly: Assembly,
    dataset: str,
    rows: Sequence[Mapping[str, Any]],
    total_steps: int,
    sizes: Mapping[str, int],
    mesh: Mesh,
) -> dict[str, Any]:
    """Returns the contents of `summary.json`.

    Args:
      run: the run's config.
      assembly: what the run trained.
      dataset: name of the data set.
      rows: the rows of `metrics.jsonl`.
      total_steps: number of training steps.
      sizes: number of parameters of `student` and `heads`.
      mesh: devices that the run used.
    """
    tests = [row for row in rows if "test/accuracy" in row and row["step"] > 0]
    last, best = tests[-1], max(tests, key=lambda row: row["test/accuracy"])
    return {
        "dataset": dataset,
        "teacher": run.teacher["name"] if assembly.teacher else None,
        "student": run.student["name"],
        "losses": " + ".join(assembly.losses),
        "seed": run.seed,
        "epochs": run.epochs,
        "steps": total_steps,
        "parameters": sizes["student"],
        "head_parameters": sizes["heads"],
        "top1_last": last["test/accuracy"],
        "top1_best": best["test/accuracy"],
        "best_step": best["step"],
        "top5_last": last["test/top5"],
        "calibration_error": last["test/calibration_error"],
        "teacher_top1": last.get("test/teacher_accuracy"),
        "agreement": last.get("test/agreement"),
        "kl_to_teacher": last.get("test/kl"),
        **{key.removeprefix("test/").replace("/", "_"): last[key] for key in last if key.startswith("test/cka/")},
        "seconds_per_step": run.batch_size / last["train/images_per_second"],
        "images_per_second": last["train/images_per_second"],
        "hardware": f"{mesh.size} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_student(run: RunConfig, images: Images) -> dict[str, Any]:
    """Returns the arguments of `models.create` that make the run's student, as `models.save` wants them."""
    overrides = {key: value for key, value in run.student.items() if key not in ("name", "checkpoint")}
    return {
        "name": run.student["name"],
        "num_classes": images.num_classes,
        "image_size": images.size,
        "overrides": {"image_channels": images.channels} | overrides,
    }


def spectra(
    network: Network, variables: Any, prepare: Callable[[jax.Array], jax.Array], images: jax.Array, mesh: Mesh
) -> dict[str, dict[str, list[float]]]:
    """Returns the radial spectrum of each stage's feature map, in cycles per image.

    Args:
      network: the network.
      variables: its variables.
      prepare: makes float images in [0, 1] of uint8 ones.
      images: uint8 images, `[batch, height, width, channels]`.
      mesh: devices that hold them.
    """

    def compute(variables: Any, images: jax.Array) -> dict[str, Any]:
        features = network.apply(variables, prepare(images), train=False).features
        return {stage: radial_spectrum(x) for stage, x in features.items() if x.ndim == 4}

    found = jax.device_get(jax.jit(compute, out_shardings=replicated(mesh))(variables, images))
    sizes = network.feature_info()
    return {
        stage: {
            "cycles_per_image": (frequencies * min(sizes[stage].height, sizes[stage].width)).tolist(),
            "power": power.tolist(),
        }
        for stage, (frequencies, power) in found.items()
    }


def summary_table(summary: Mapping[str, Any]) -> str:
    """Returns a summary as a Markdown table."""
    return table(["result", "value"], [[name, _show(value)] for name, value in summary.items()])


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 100 else f"{value:,.0f}"
    return str(value)
