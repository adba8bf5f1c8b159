"""LFCC as rebuilt here: low-frequency codes of four stages, and a contrast between the images of a batch."""

from jaxtyping import Array

from lfcc_jax.errors import unknown
from lfcc_jax.losses import lfcc_init, lfcc_loss
from lfcc_jax.methods.method import Batch, Method
from lfcc_jax.models import Output


class LFCC(Method):
    """Low-frequency contrastive distillation, with its projectors as heads. See `lfcc_jax.losses.lfcc_loss`.

    Attributes:
      stages: the feature maps that are aligned, by name.
      kind: of the low-pass filter.
      grids: sides of the compact codes, in cells; those that fit in neither map of a stage are left out there.
      width: channels of the shared space.
      temperature: divides the cosine similarities.
    """

    stages: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")
    kind: str = "box"
    grids: tuple[int, ...] = (1, 2, 4)
    width: int = 128
    temperature: float = 0.1

    def __call__(self, batch: Batch, student: Output, teacher: Output | None) -> dict[str, Array]:
        """Returns `lfcc` `[batch]`."""
        for stage in self.stages:
            for features in (student.features, teacher.features):
                if stage not in features:
                    raise unknown("stage", stage, features, "lfcc.stages")
        ours = {stage: student.features[stage] for stage in self.stages}
        theirs = {stage: teacher.features[stage] for stage in self.stages}
        channels = [{stage: x.shape[-1] for stage, x in features.items()} for features in (ours, theirs)]
        projectors = self.param("projectors", lfcc_init, *channels, self.width)
        loss = lfcc_loss(projectors, ours, theirs, kind=self.kind, grids=self.grids, temperature=self.temperature)
        return {"lfcc": loss}
