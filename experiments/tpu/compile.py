"""Compiles a config's training step for a TPU slice, without a TPU: memory, FLOPs, bytes and collectives per chip.

    pip install "jax[tpu]"
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m experiments.tpu.compile --topology=v5e:4x4 \
        --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc --config.batch_size=1024

Needs neither the data set nor the teacher's checkpoint. A step of a ResNet-50 compiles in five minutes on two cores;
reports are kept in `--reports` and reused. FLOPs are those of matrix products and convolutions, bytes those that are
read from HBM and written there: see `experiments.cost` and `experiments.tpu.memory`.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from experiments.cost import count_macs
from experiments.tpu.collectives import KINDS, collectives
from experiments.tpu.memory import hbm_bytes
from lfcc_jax import main as cli
from lfcc_jax.arguments import checked_arguments
from lfcc_jax.data import Images, augmentation, random_images
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.training.config import RunConfig, as_dict, read_config
from lfcc_jax.training.distillation import Distillation, build
from lfcc_jax.training.evaluation import make_comparison_step
from lfcc_jax.training.feeds import batch_shapes
from lfcc_jax.training.parts import Parts, check_parts
from lfcc_jax.training.report import table
from lfcc_jax.training.sharding import batch_sharding, check_batch_size, create_mesh, replicated

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice, as GENERATION:CHIPSxCHIPS.")
_EVALUATION = flags.DEFINE_bool("evaluation", False, "Compile the evaluation instead, and keep no report.")
_REPORTS = flags.DEFINE_string("reports", "experiments/results/tpu_compile", "Directory of the reports.")

# Number of classes, number of training images, and image size (0 if it varies) of data sets that are not read.
_DATA = {"cifar10": (10, 50_000, 32), "cifar100": (100, 50_000, 32), "imagenet2012": (1000, 1_281_167, 0)}
# Config keys on which the step does not depend.
_NOT_COMPILED = ("seed", "log_every_steps", "eval_every_epochs", "checkpoint_every_steps")


def main() -> None:
    """Compiles the program, or reads its report, and prints the report."""
    config = as_dict(flags.FLAGS.config)
    if _EVALUATION.value:
        print(_report_table(compile_evaluation(config, _TOPOLOGY.value), _TOPOLOGY.value))
        return
    key = {"config": {k: v for k, v in config.items() if k not in _NOT_COMPILED}, "topology": _TOPOLOGY.value}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(_REPORTS.value) / f"{name}.json"
    if path.exists():
        report = json.loads(path.read_text())
        print(f"read from {path}; delete it to compile again\n")
    else:
        report = compile_step(config, _TOPOLOGY.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(_report_table(report, _TOPOLOGY.value))
    path.parent.with_suffix(".md").write_text(_all_reports(path.parent))


def topology_mesh(topology: str, data: int = -1, fsdp: int = 1) -> Mesh:
    """Returns the trainer's mesh over the chips of a slice, without hardware."""
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # XLA has its own exceptions
        raise UserError(f"--topology={topology}: {' '.join(str(error).split())[:200]}") from error
    if len(devices) % fsdp or data not in (-1, len(devices) // fsdp):
        raise UserError(
            f"config.mesh must have data * fsdp = {len(devices)} for {topology}, got data={data} and fsdp={fsdp}"
        )
    data = len(devices) // fsdp
    chips = np.asarray(devices).reshape(data, fsdp)
    return Mesh(chips, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def compile_step(config: dict[str, Any], topology: str) -> dict[str, Any]:
    """Compiles the training step of a config for a slice and returns what it takes.

    Args:
      config: Config of a run, as plain dicts.
      topology: Name of the slice, for example `v5e:4x4`.

    Returns:
      `parameters`; per chip, the bytes of `arguments` and `temporaries` in HBM, `flops` of products and `hbm_bytes`,
      which are read from HBM and written there; for each kind of collective, its count and the bytes of its results;
      and `compile_seconds`.

    Raises:
      UserError: if the config or the topology is invalid.
    """
    run, mesh, distillation, images, fixed_size = _built(config, topology)
    cropped = fixed_size and run.data.get("image_size")  # on the device, as in `open_inputs`
    sizes = {"num_classes": images.num_classes, "size": images.size if cropped else 0}
    settings = run.data.get("augmentation") or {}
    augment = augmentation.create(**checked_arguments(augmentation.create, settings, "config.data.augmentation", sizes))
    from_host = fixed_size or images.size
    batch = batch_shapes(mesh, run.batch_size, (from_host, from_host, 3))
    step = distillation.train_step(mesh, augment)
    return _report(run, distillation, mesh, topology, step, (*distillation.step_arguments(mesh), batch))


def compile_evaluation(config: dict[str, Any], topology: str) -> dict[str, Any]:
    """Compiles the comparison of a config's student with its teacher and returns a report as `compile_step` does.

    Raises:
      UserError: if the config or the topology is invalid, or the config has no teacher.
    """
    run, mesh, distillation, images, _ = _built(config, topology)
    if not distillation.teachers:
        raise UserError("--evaluation compares a student with its teacher: config.teacher.name must not be empty")
    state, teachers = distillation.step_arguments(mesh)
    batch = batch_shapes(mesh, run.batch_size, (images.size, images.size, images.channels))
    batch["mask"] = jax.ShapeDtypeStruct((run.batch_size,), bool, sharding=batch["label"].sharding)
    parts = Parts(mesh, run.images_at_once)
    step = make_comparison_step(distillation.student, distillation.teachers, mesh, parts=parts)
    step = jax.jit(step, out_shardings=(replicated(mesh), batch_sharding(mesh)))
    return _report(run, distillation, mesh, topology, step, (state.evaluated, teachers, batch))


def _built(config: dict[str, Any], topology: str) -> tuple[RunConfig, Mesh, Distillation, Images, int]:
    """Returns a config's run, mesh, networks and images, and the size of stored images (0 if it varies)."""
    run = read_config(config)
    mesh = topology_mesh(topology, **checked_arguments(create_mesh, run.mesh, "config.mesh"))
    check_batch_size(run.batch_size, mesh, "config.batch_size")
    check_parts(run.images_at_once, run.batch_size, mesh)
    name = run.data["name"]
    if sizes := random_images.parse_name(name):
        classes, count, size = sizes[0], 1024, sizes[1]
    elif name in _DATA:
        classes, count, size = _DATA[name]
    else:
        raise unknown("data set", name, _DATA, "config.data.name")
    image_size = run.data.get("image_size") or size
    images = Images(classes, image_size, 3, count)
    return run, mesh, build(run, images), images, size


def _report(
    run: RunConfig, distillation: Distillation, mesh: Mesh, topology: str, step: Any, arguments: tuple[Any, ...]
) -> dict[str, Any]:
    began = time.monotonic()
    traced = step.trace(*arguments)
    program = traced.lower().compile()
    seconds = time.monotonic() - began
    memory, text = program.memory_analysis(), program.as_text()
    report = {
        "teacher": " + ".join(run.teacher_networks.values()) or "none",
        "student": run.student["name"],
        "losses": " + ".join(distillation.losses),
        "batch": run.batch_size,
        "dtype": run.dtype,
        "topology": topology,
        "images_at_once": run.images_at_once,
        "parameters": sum(x.size for x in jax.tree.leaves(distillation.state_shapes().student["params"])),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": int(2 * count_macs(traced.jaxpr.jaxpr, "tpu") / mesh.size),
        "hbm_bytes": hbm_bytes(text),
    }
    for kind, (count, size) in sorted(collectives(text).items()):
        report |= {kind: count, f"{kind} bytes": size}
    return report | {"compile_seconds": round(seconds), "jax": jax.__version__}


def _report_table(report: dict[str, Any], topology: str) -> str:
    rows = [[key, f"{value:,}" if isinstance(value, int) else str(value)] for key, value in report.items()]
    return table(["per chip", topology], rows)


def _all_reports(directory: Path) -> str:
    """Returns Markdown with all reports in a directory."""
    rows = []
    for path in directory.glob("*.json"):
        report = json.loads(path.read_text())
        sent = [
            f"{count} {kind}, {report[f'{kind} bytes'] / 1e6:.1f} MB" for kind in KINDS if (count := report.get(kind))
        ]
        rows.append(
            [
                f"{report['teacher']} -> {report['student']}",
                report["losses"],
                *(report[key] for key in ("topology", "batch", "dtype")),
                report["images_at_once"],
                *(f"{report[key] / 2**30:.2f}" for key in ("arguments", "temporaries")),
                f"{report['flops'] / 1e9:,.1f}",
                f"{report['hbm_bytes'] / 1e9:,.2f}",
                "; ".join(sent),
                *(report[key] for key in ("compile_seconds", "jax")),
            ]
        )
    header = [
        "networks",
        "losses",
        "slice",
        "batch",
        "dtype",
        "images at once",
        "arguments, GiB",
        "temporaries, GiB",
        "GFLOPs",
        "GB from and to HBM",
        "collectives, bytes of their results",
        "compiled in, s",
        "jax",
    ]
    return (
        "Training steps compiled for TPU slices, per chip (`python -m experiments.tpu.compile --topology=SLICE "
        "--config=...`). Images at once: -1 is the default, about 8 of 224 x 224; 0 takes all.\n\n"
        + table(header, sorted(rows))
        + "\n"
    )


if __name__ == "__main__":
    cli.run(main)
