"""LFCC as rebuilt here: low-frequency codes of four stages, and a contrast between the images of a batch."""

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.errors import unknown
from lfcc_jax.filters import KINDS
from lfcc_jax.losses import lfcc_init, lfcc_loss
from lfcc_jax.methods.method import STAGES, Batch, Method, TeacherOutput
from lfcc_jax.models import Output


class LFCC(Method):
    """Low-frequency contrastive distillation, with its projectors as heads. See `lfcc_jax.losses.lfcc_loss`.

    Attributes:
      stages: the feature maps that are aligned, by name.
      kind: of the low-pass filter, one of `lfcc_jax.KINDS`, or `learned`.
      grids: sides of the compact codes, in cells; at each stage those that do not fit into both maps are left out.
      width: channels of the shared space.
      projector: `both`, `student` or `mlp`; see `lfcc_init`.
      temperature: divides the cosine similarities.
      negatives: `teacher`, `both` or `symmetric`; see `info_nce`.
    """

    stages: tuple[str, ...] = STAGES
    kind: str = "box"
    grids: tuple[int, ...] = (1, 2, 4)
    width: int = 128
    projector: str = "both"
    temperature: float = 0.1
    negatives: str = "teacher"

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `lfcc` `[batch]`."""
        if self.kind not in (*KINDS, "learned"):
            raise unknown("filter kind", self.kind, (*KINDS, "learned"), "config.losses.lfcc.kind")
        maps = self.maps(self.stages, student, teacher)
        ours, theirs = ({stage: pair[i] for stage, pair in maps.items()} for i in (0, 1))
        channels = [{stage: x.shape[-1] for stage, x in features.items()} for features in (ours, theirs)]
        sizes = {stage: (ours[stage].shape[1:3], theirs[stage].shape[1:3]) for stage in self.stages}
        params = self.param(
            "lfcc",
            lfcc_init,
            *channels,
            self.width,
            projector=self.projector,
            learned_sizes=sizes if self.kind == "learned" else None,
            grids=self.grids,
        )
        loss = lfcc_loss(
            params,
            ours,
            theirs,
            kind=self.kind,
            grids=self.grids,
            temperature=self.temperature,
            negatives=self.negatives,
        )
        return {"lfcc": loss}
