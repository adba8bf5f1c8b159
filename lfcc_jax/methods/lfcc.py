"""LFCC, as reconstructed here: low-frequency codes of four stages, contrasted between the images of a batch."""

import functools
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import Array

from lfcc_jax import losses
from lfcc_jax.arguments import Between, Distinct
from lfcc_jax.losses.contrastive import NEGATIVES
from lfcc_jax.losses.lfcc import LFCC_KINDS, PROJECTORS
from lfcc_jax.methods.method import STAGES, Batch, Method, Stages, TeacherOutput, Temperature, Width
from lfcc_jax.models import Output


class LFCC(Method):
    """Low-frequency contrastive distillation, with its projectors as heads; see `lfcc_jax.losses.lfcc_loss`.

    Attributes:
      stages: Names of the feature maps to align.
      kind: Low-pass filter: one of `lfcc_jax.KINDS`, "learned" or "none"; see `lfcc_loss`.
      grids: Side lengths of the compact codes, in cells. Each stage uses those that fit into both maps.
      width: Channels of the shared space.
      projector: "both", "student" or "mlp"; see `lfcc_init`.
      temperature: Divides the cosine similarities.
      negatives: "teacher", "both" or "symmetric"; see `info_nce`.
      standardize: Whether to standardize codes over the batch; see `lfcc_loss`.
      mesh: Mesh over which the batch is split; see `for_run`. With one, a single collective gathers the codes of all
        stages and grids. Without one, XLA gathers each of them.
    """

    set_by_run: ClassVar[tuple[str, ...]] = ("mesh",)
    stages: Stages = STAGES
    kind: Literal[LFCC_KINDS] = "box"
    grids: Annotated[tuple[Annotated[int, Between(1, 256)], ...], Distinct] = (1, 2, 4)
    width: Width = 128
    projector: Literal[PROJECTORS] = "both"
    temperature: Temperature = 0.1
    negatives: Literal[NEGATIVES] = "teacher"
    standardize: bool = True
    mesh: Mesh | None = None

    def for_run(self, *, num_examples: int | None = None, mesh: Mesh | None = None) -> "Method":
        """Sets `mesh`."""
        return self if mesh is None else self.clone(mesh=mesh)

    def of_teacher(self, output: Output) -> Output:
        """Returns the points of each stage, unless the filters are learned."""
        if self.kind == "learned":
            return output
        # That all stages are there was seen when the projectors were created.
        maps = {stage: output.features[stage] for stage in self.stages}
        points = {stage: losses.lfcc_points(x, kind=self.kind, grids=self.grids) for stage, x in maps.items()}
        return Output(None, points)

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        maps = self.maps(self.stages, student, teacher)
        ours, theirs = ({stage: pair[i] for stage, pair in maps.items()} for i in (0, 1))
        channels = [{stage: x.shape[-1] for stage, x in features.items()} for features in (ours, theirs)]
        sizes = None
        if self.kind == "learned":
            sizes = {stage: (ours[stage].shape[1:3], theirs[stage].shape[1:3]) for stage in self.stages}
        params = self.param(
            "lfcc",
            losses.lfcc_init,
            *channels,
            self.width,
            projector=self.projector,
            learned_sizes=sizes,
            grids=self.grids,
        )
        loss = functools.partial(
            losses.lfcc_loss,
            kind=self.kind,
            grids=self.grids,
            temperature=self.temperature,
            negatives=self.negatives,
            standardize=self.standardize,
        )
        if self.mesh is not None and self.mesh.size > 1:
            axes = self.mesh.axis_names
            split = jax.P(axes)
            loss = jax.shard_map(
                functools.partial(loss, axis_name=axes),
                mesh=self.mesh,
                in_specs=(jax.P(), split, split),
                out_specs=split,
            )
        return loss(params, ours, theirs)
