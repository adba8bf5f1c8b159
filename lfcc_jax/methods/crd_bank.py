"""Contrastive representation distillation against a memory of the whole data set (Tian et al., 2020)."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import Between, HalfOpenFraction, NonNegative
from lfcc_jax.losses import crd_nce
from lfcc_jax.losses.numerics import unit
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature, Width
from lfcc_jax.models import Output


class CRDBank(Method):
    """See `lfcc_jax.losses.crd_nce`. The memory holds both networks' codes of every training image, and its class.

    Two departures from the authors' code, for the sake of memory: the negatives are drawn once for the whole batch, not
    for each image (their scores are then one matrix product), and those of an image's own class are left out after they
    were drawn.

    Attributes:
      examples: how many training images there are, `batch["index"]` counting them; a run sets it.
      draws: how many negatives are drawn at each step.
      width: channels of the codes.
      temperature: divides the cosine similarities.
      momentum: share of the old code in an image's new one.
    """

    examples: Annotated[int, NonNegative] = 0
    draws: Annotated[int, Between(1, 2**20)] = 16384
    width: Width = 128
    temperature: Temperature = 0.07
    momentum: Annotated[float, HalfOpenFraction] = 0.5

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> dict[str, Array]:
        """Returns `crd_bank` `[batch]`."""
        size, index = max(self.examples, 1), batch["index"]
        codes = {}
        for network, pooled in zip(("student", "teacher"), self.pooled(student, teacher), strict=True):
            codes[network] = unit(nn.Dense(self.width, name=network)(pooled))
        classes = self.variable("memory", "class", lambda: jnp.full(size, -1, jnp.int32))
        drawn = jax.random.randint(self.make_rng("dropout"), (self.draws,), 0, size)
        # Labels fill in during the first epoch (-1 until then); an image is never its own negative.
        left_out = (batch["label"][:, None] == classes.value[drawn][None]) | (index[:, None] == drawn[None])

        loss = 0.0
        for network, other in (("student", "teacher"), ("teacher", "student")):
            memory = self.variable("memory", f"{other}_codes", self._random_codes, size)
            log_z = self.variable("memory", f"log_z_{network}", lambda: jnp.full((), -jnp.inf))
            positive = jnp.sum(codes[network] * memory.value[index], axis=1) / self.temperature
            negatives = jnp.matmul(codes[network], memory.value[drawn].T, precision="highest") / self.temperature
            negatives = jnp.where(left_out, -jnp.inf, negatives)
            if not self.is_initializing():
                first = self._log_mean_exp(positive, negatives) + jnp.log(size)
                log_z.value = jnp.where(jnp.isneginf(log_z.value), jax.lax.stop_gradient(first), log_z.value)
                fresh = self.momentum * memory.value[index] + (1 - self.momentum) * codes[other]
                memory.value = memory.value.at[index].set(jax.lax.stop_gradient(unit(fresh)))
            loss += crd_nce(positive - log_z.value, negatives - log_z.value, data_size=size)
        if not self.is_initializing():
            classes.value = classes.value.at[index].set(batch["label"])
        return {"crd_bank": loss}

    def _random_codes(self, size: int) -> Float[Array, "size width"]:
        limit = (3 / self.width) ** 0.5
        return jax.random.uniform(self.make_rng("params"), (size, self.width), minval=-limit, maxval=limit)

    def _log_mean_exp(self, positive: Float[Array, " batch"], negatives: Float[Array, "batch draws"]) -> Array:
        scores = jnp.concatenate([positive[:, None], negatives], axis=1)
        return jax.nn.logsumexp(scores) - jnp.log(jnp.sum(jnp.isfinite(scores), dtype=scores.dtype))
