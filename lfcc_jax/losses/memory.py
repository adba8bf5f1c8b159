"""Noise-contrastive estimation against a memory of codes, as in contrastive representation distillation (CRD)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.precision import widen


def crd_nce(
    positive: Float[Array, " batch"],
    negatives: Float[Array, "batch negatives"],
    *,
    data_size: int,
) -> Float[Array, " batch"]:
    r"""Computes the noise-contrastive loss of CRD, per example: its partner's code against K codes drawn at random.

    With the scores :math:`P = \exp(\langle s, t \rangle / \tau) / Z` and :math:`m = K / N`, the expected number of
    times that each of N codes is drawn:

    .. math::
      -\log \frac{P_0}{P_0 + m + \epsilon} - \sum_{k=1}^K \log \frac{m}{P_k + m + \epsilon}, \qquad \epsilon = 10^{-7}

    The authors sum two such losses: the student's code against the memory of the teacher's, and vice versa.
    Their Z is a constant: N times the mean of :math:`\exp(\langle s, t \rangle / \tau)` over the first batch.

    Args:
      positive: :math:`\log P_0` of each example and its own partner, any floating dtype.
      negatives: :math:`\log P_k` of each example and K codes drawn from the data set; minus infinity excludes one.
      data_size: Number of examples N in the data set.

    Returns:
      The loss of each example in nats, float32 or wider.

    Examples:
      >>> print(crd_nce(jnp.log(jnp.array([1.0])), jnp.log(jnp.array([[1.0]])), data_size=1).round(4))  # 2 log 2
      [1.3863]

    References:
      Tian et al, `Contrastive Representation Distillation <https://arxiv.org/abs/1910.10699>`_, 2019 (weight 0.8,
      K = 16384, codes of 128, temperature 0.07).

    .. seealso::
      :func:`lfcc_jax.losses.info_nce` for negatives from the batch.
    """
    expected = negatives.shape[1] / data_size
    noise = jnp.log(expected + 1e-7)
    of_positive = jax.nn.softplus(noise - widen(positive))
    of_negatives = jnp.logaddexp(widen(negatives), noise) - jnp.log(expected)
    return of_positive + jnp.sum(of_negatives, axis=1)
