"""Contrastive representation distillation (Tian et al., 2020), with negatives from the batch or from a memory."""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lfcc_jax import losses
from lfcc_jax.arguments import Between, HalfOpenFraction, NonNegative
from lfcc_jax.errors import UserError
from lfcc_jax.losses.numerics import unit
from lfcc_jax.methods.heads import embed
from lfcc_jax.methods.method import Batch, Method, TeacherOutput, Temperature, Width
from lfcc_jax.models import Output


class CRD(Method):
    """Contrastive distillation of linear codes of the pooled features, with the batch's other images as negatives.

    This is `lfcc_jax.losses.info_nce` in both directions. The authors' estimate over a memory of the whole data set is
    `CRDBank`.

    Attributes:
      width: Channels of the codes.
      temperature: Divides the cosine similarities.
      same_class: Whether images of the same class are negatives; not so in the authors' code. Without labels, all other
        images are.
    """

    width: Width = 128
    temperature: Temperature = 0.07
    same_class: bool = False

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        return losses.info_nce(
            *embed(*self.pooled(student, teacher), self.width),
            temperature=self.temperature,
            negatives="symmetric",
            labels=None if self.same_class else batch.get("label"),
        )


class CRDBank(Method):
    """Contrastive distillation with negatives from a memory of the data set; see `lfcc_jax.losses.crd_nce`.

    The memory holds both networks' codes of every training image, and its class. Two departures from the authors' code
    save memory: negatives are drawn once for the whole batch instead of for each image, so that their scores are one
    matrix product; and those of an image's own class are left out after drawing. Without labels, each image is a class.

    Attributes:
      num_negatives: Number of negatives drawn at each step.
      width: Channels of the codes.
      temperature: Divides the cosine similarities.
      momentum: Fraction of the old code that is kept in an update.
      num_examples: Number of training images, which `batch["index"]` indexes; see `for_run`.
    """

    block: ClassVar[str] = "crd_bank"
    set_by_run: ClassVar[tuple[str, ...]] = ("num_examples",)
    num_negatives: Annotated[int, Between(1, 2**20)] = 16384
    width: Width = 128
    temperature: Temperature = 0.07
    momentum: Annotated[float, HalfOpenFraction] = 0.5
    num_examples: Annotated[int, NonNegative] = 0

    def for_run(self, *, num_examples: int | None = None, mesh: Mesh | None = None) -> "Method":
        """Sets `num_examples`."""
        if num_examples is None:
            return self
        if self.num_negatives > num_examples:
            raise UserError(
                "config.losses.crd_bank.num_negatives must be at most the number of training images, "
                f"{num_examples}, got {self.num_negatives}"
            )
        return self.clone(num_examples=num_examples)

    @nn.compact
    def __call__(self, batch: Batch, student: Output, teacher: TeacherOutput | None) -> Array:
        """Returns the loss `[batch]`."""
        size, index = max(self.num_examples, 1), batch["index"]
        labels = batch.get("label", index)
        embeddings = embed(*self.pooled(student, teacher), self.width)
        codes = dict(zip(("student", "teacher"), map(unit, embeddings), strict=True))
        classes = self.variable("memory", "class", lambda: jnp.full(size, -1, jnp.int32))
        drawn = jax.random.randint(self.make_rng("dropout"), (self.num_negatives,), 0, size)
        # Labels fill in during the first epoch (-1 until then); an image is never its own negative.
        left_out = (labels[:, None] == classes.value[drawn][None]) | (index[:, None] == drawn[None])

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
            loss += losses.crd_nce(positive - log_z.value, negatives - log_z.value, data_size=size)
        if not self.is_initializing():
            classes.value = classes.value.at[index].set(labels)
        return loss

    def _random_codes(self, size: int) -> Float[Array, "size width"]:
        limit = (3 / self.width) ** 0.5
        return jax.random.uniform(self.make_rng("params"), (size, self.width), minval=-limit, maxval=limit)

    def _log_mean_exp(self, positive: Float[Array, " batch"], negatives: Float[Array, "batch negatives"]) -> Array:
        scores = jnp.concatenate([positive[:, None], negatives], axis=1)
        return jax.nn.logsumexp(scores) - jnp.log(jnp.sum(jnp.isfinite(scores), dtype=scores.dtype))
