"""Contrastive representation distillation: noise-contrastive estimation against a memory of the data set's codes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.losses.numerics import widen


def crd_nce(
    positive: Float[Array, " batch"],
    negatives: Float[Array, "batch negatives"],
    *,
    data_size: int,
) -> Float[Array, " batch"]:
    r"""Computes the noise-contrastive loss of CRD, per example: telling its partner's code from K drawn at random.

    With the scores :math:`P = \exp(\langle s, t \rangle / \tau) / Z` and :math:`m = K / N`, the expected number of
    times that one of N codes is drawn:

    .. math::
      -\log \frac{P_0}{P_0 + m + \epsilon} - \sum_{k=1}^K \log \frac{m}{P_k + m + \epsilon}, \qquad \epsilon = 10^{-7}

    The authors add this loss for the student's code among the teacher's to that for the teacher's among the student's.
    Their Z is a constant: N times the mean of :math:`\exp(\langle s, t \rangle / \tau)` over the first batch.

    Args:
      positive: :math:`\log P_0`, of the example and its own partner, any floating dtype.
      negatives: :math:`\log P_k`, of the example and K codes drawn from the data set; minus infinity leaves one out.
      data_size: N, the number of examples in the data set.

    Returns:
      The loss of each example in nats, float32 or wider.

    Examples:
      >>> print(crd_nce(jnp.log(jnp.array([1.0])), jnp.log(jnp.array([[1.0]])), data_size=1).round(4))  # 2 log 2
      [1.3863]

    References:
      Tian et al, `Contrastive Representation Distillation <https://arxiv.org/abs/1910.10699>`_, 2019 (weight 0.8,
      K = 16384, codes of 128, temperature 0.07).

    .. seealso::
      :func:`lfcc_jax.losses.info_nce` for the contrast with the other examples of the batch.
    """
    expected = negatives.shape[1] / data_size
    noise = jnp.log(expected + 1e-7)
    of_positive = jax.nn.softplus(noise - widen(positive))
    of_negatives = jnp.logaddexp(widen(negatives), noise) - jnp.log(expected)
    return of_positive + jnp.sum(of_negatives, axis=1)
