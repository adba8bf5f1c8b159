"""What a distillation method is: trainable heads and per-example losses, between any two networks."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array

from lfcc_jax.models import Output

# `image` `[B, H, W, C]` in [0, 1] and `label` `[B]`, as the networks saw them.
Batch = dict[str, Array]


class Method(nn.Module):
    """Base of all methods: `method(batch, student, teacher) -> {name: loss of each example}`.

    A method's fields are its settings, and so the keys of its config block. Heads that it trains are Linen parameters;
    what it remembers between steps lives in collections of other names. Both are checkpointed, and neither is part of
    the student.
    """

    needs_teacher: ClassVar[bool] = True

    def __call__(self, batch: Batch, student: Output, teacher: Output | None) -> dict[str, Array]:
        """Returns losses `[batch]` by name. No gradient may reach the teacher."""
        raise NotImplementedError
