"""Compiles the core's programs for a TPU v5e 4x4 slice, without a TPU.

    pip install "jax[tpu]" && JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m experiments.tpu.lower_core

Prints a table with the collectives and the temporary HBM per chip of each program.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding

from experiments.tpu.collectives import collectives
from lfcc_jax import KINDS, compact_grids, info_nce, lfcc_init, lfcc_loss, low_pass
from lfcc_jax.learned_filter import learned_compact_grids, learned_filter_init

GRIDS = (1, 2, 4)
CHIPS = 16


def main() -> None:
    """Prints one row per program."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    mesh = topologies.make_mesh(topology, (CHIPS,), ("data",))
    mesh = jax.sharding.Mesh(mesh.devices, ("data",), axis_types=(AxisType.Auto,))
    batch = jax.P("data")

    def split(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, batch))

    def everywhere(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, jax.P())), tree
        )

    def report(name, function, *arguments):
        program = jax.jit(function).lower(*arguments).compile()
        counts = sorted(collectives(program.as_text()).items())
        sent = ", ".join(f"{count} {kind}" for kind, (count, _) in counts) or "none"
        temporary = program.memory_analysis().temp_size_in_bytes / 2**20
        print(f"| {name} | {sent} | {temporary:.2f} |", flush=True)

    def energy(ys):
        return sum(jnp.sum(jnp.square(y.astype(jnp.float32))) for y in jax.tree.leaves(ys))

    print(f"jax {jax.__version__}, TPU v5e 4x4, {CHIPS} chips, compiled without hardware\n")
    print("| program | collectives | temporary HBM, MiB per chip |\n| --- | --- | --- |")
    maps = split(2048, 56, 56, 256)
    for kind in KINDS:
        report(f"compact {kind}, gradient", jax.grad(lambda x, kind=kind: energy(compact_grids(x, kind, GRIDS))), maps)
    report("low_pass dct, gradient", jax.grad(lambda x: energy(low_pass(x, "dct", 0.1))), maps)
    learned = everywhere(learned_filter_init((56, 56), GRIDS))
    report(
        "learned compact, gradient to its logits",
        jax.grad(lambda params, x: energy(learned_compact_grids(params, x, GRIDS))),
        learned,
        maps,
    )

    codes = split(32768, 256, dtype=jnp.float32), split(32768, 256, dtype=jnp.float32)
    layouts = {
        "global": {},
        "global, chunks of 1024": {"chunk_size": 1024},
        "all-gather": {"axis_name": "data"},
        "all-gather, chunks of 1024": {"axis_name": "data", "chunk_size": 1024},
        "ring": {"axis_name": "data", "ring": True},
    }
    for name, layout in layouts.items():
        loss = functools.partial(info_nce, temperature=0.1, **layout)
        if "axis_name" in layout:
            loss = jax.shard_map(loss, mesh=mesh, in_specs=batch, out_specs=batch)
        for argnums, teacher in ((0, "constant teacher"), ((0, 1), "trainable teacher projection")):
            gradient = jax.grad(lambda s, t, loss=loss: loss(s, t).mean(), argnums)
            report(f"info_nce 32768 x 256, {name}, {teacher}, gradient", gradient, *codes)

    sizes = {"stage1": 56, "stage2": 28, "stage3": 14, "stage4": 7}
    student = {"stage1": 64, "stage2": 128, "stage3": 256, "stage4": 512}
    teacher = {"stage1": 96, "stage2": 192, "stage3": 384, "stage4": 768}
    features = [{stage: split(4096, n, n, c[stage]) for stage, n in sizes.items()} for c in (student, teacher)]
    for projector in ("student", "both"):
        params = everywhere(
            jax.eval_shape(
                functools.partial(
                    lfcc_init, projector=projector, width=128, student_channels=student, teacher_channels=teacher
                ),
                jax.random.key(0),
            )
        )
        for name in ("global", "all-gather", "ring"):
            loss = functools.partial(lfcc_loss, **layouts[name])
            if "axis_name" in layouts[name]:
                loss = jax.shard_map(loss, mesh=mesh, in_specs=(jax.P(), batch, batch), out_specs=batch)
            gradient = jax.grad(lambda p, s, t, loss=loss: loss(p, s, t).mean(), (0, 1))
            report(
                f"lfcc_loss, 4 stages x 3 grids, projector {projector}, {name}, gradient", gradient, params, *features
            )


if __name__ == "__main__":
    main()
