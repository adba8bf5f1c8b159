"""Pure loss functions: per example, float32, without a hidden reduction."""

from lfcc_jax.losses.contrastive import info_nce as info_nce
from lfcc_jax.losses.contrastive import info_nce_many as info_nce_many
from lfcc_jax.losses.lfcc import lfcc_codes as lfcc_codes
from lfcc_jax.losses.lfcc import lfcc_init as lfcc_init
from lfcc_jax.losses.lfcc import lfcc_loss as lfcc_loss
from lfcc_jax.losses.logits import cross_entropy as cross_entropy
from lfcc_jax.losses.logits import kd as kd
