"""Compiles training steps of configs/imagenet.py for an NVIDIA GPU, without one: kernels, and the bytes they touch.

    pip install jax-cuda12-plugin
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python -m experiments.gpu.kernels \
        --pairs=resnet50:deit_tiny_patch16_224,swin_tiny:resnet18 --methods=kd,lfcc --augmentation=flip --list=20

Every kernel reads its operands from the GPU's memory and writes its results there, and most kernels of these steps are
limited by that. The sum is an upper bound of the bytes: what reads a part of an array counts as reading all of it.
Branches of conditionals are not counted. On a GPU, XLA times alternatives, such as Triton's matrix products, which can
be fused with what follows; here it cannot. The flag makes it use cuBLAS.
"""

import argparse
import collections
import dataclasses
import re
import sys
import time

import numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from experiments.bench import steps
from experiments.cost import array_bytes, instructions
from lfcc_jax.errors import UserError
from lfcc_jax.models import attention
from lfcc_jax.training.report import table

# An H200, as XLA's compiler sees it.
_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 8 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H200"
"""
# Instructions that run nothing on the device.
_NO_KERNELS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction of a compiled program.

    Attributes:
      kind: `fusion`, or the name of the library's call.
      size: Bytes of its operands and results.
      results: Its results' shapes.
      operation: What it computes, with layer numbers replaced by `#`.
    """

    kind: str
    size: int
    results: str
    operation: str


def main() -> None:
    """Prints a table of all programs, and their largest kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps.add_options(parser)
    parser.add_argument("--list", type=int, default=0, help="number of kernels to list (default: %(default)s)")
    options = parser.parse_args()
    try:
        print(_tables(options))
    except UserError as error:
        sys.exit(f"error: {error}")


def _tables(options: argparse.Namespace) -> str:
    mesh, rows, lists = gpu_mesh(), [], []
    for pair in options.pairs:
        for method in options.methods:
            lowered = steps.JaxStep(options, mesh, steps.Row(pair, method, "lfcc_jax")).lower()
            began = time.monotonic()
            found = kernels(lowered.compile().as_text())
            seconds = time.monotonic() - began
            calls = sum(kernel.kind.startswith("__cu") for kernel in found)  # of cuBLAS and cuDNN
            size = sum(kernel.size for kernel in found)
            name = pair.replace(":", " -> ")
            rows.append([name, method, str(len(found)), str(calls), f"{size / 1e9:.1f}", f"{seconds:.0f}"])
            print(f"{name}, {method}: compiled in {seconds:.0f} s", file=sys.stderr, flush=True)
            if options.list:
                lists.append(f"{name}, {method}\n\n{_largest(found, options.list)}")
    header = ["teacher -> student", "method", "kernels", "of libraries", "GB touched", "compiled in, s"]
    return "\n\n".join([table(header, rows), *lists])


def gpu_mesh() -> Mesh:
    """Returns the trainer's mesh of one GPU that is not there.

    Raises:
      UserError: if jax's plugin for CUDA is not installed.
    """
    try:
        topology = topologies.get_topology_desc("", "cuda", target_config=_TARGET, topology="1x1x1")
    except Exception as error:  # XLA has its own exceptions
        raise UserError(f"no compiler for NVIDIA GPUs: pip install jax-cuda12-plugin ({str(error)[:120]})") from error
    # What jax, and we, would ask the device.
    fused_attention_stablehlo.check_cudnn_version = lambda: 90700
    fused_attention_stablehlo.check_compute_capability = lambda capability: True
    fused_attention_stablehlo.is_cuda_compute_capability_equal = lambda capability: False
    attention.has_cudnn = lambda *kind: True
    devices = np.asarray(topology.devices).reshape(1, 1)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program, as `jax.stages.Compiled.as_text` prints it.

    Those of a loop are repeated as often as it runs, if that can be read.
    """
    return [
        Kernel(
            each.kind,
            sum(map(array_bytes, (each.result, *each.operands))),
            re.sub(r"\{[^}]*\}", "", each.result),
            re.sub(r"\d+", "#", each.operation),
        )
        for each in instructions(text)
        if each.kind not in _NO_KERNELS
    ]


def _largest(found: list[Kernel], count: int) -> str:
    """Returns a table of equal kernels, those that touch the most bytes first."""
    groups = collections.defaultdict(list)
    for kernel in found:
        groups[kernel.kind, kernel.results, kernel.operation].append(kernel.size)
    largest = sorted(groups.items(), key=lambda item: -sum(item[1]))[:count]
    rows = [
        [f"{sum(sizes) / 1e9:.2f}", str(len(sizes)), kind, results[:60], operation[-90:]]
        for (kind, results, operation), sizes in largest
    ]
    return table(["GB", "kernels", "kind", "results", "operation"], rows)


if __name__ == "__main__":
    main()
