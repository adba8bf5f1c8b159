"""Pure loss functions in float32: one value per example, or a scalar if the loss is a statistic of the batch."""

from lfcc_jax.losses.contrastive import info_nce as info_nce
from lfcc_jax.losses.contrastive import info_nce_many as info_nce_many
from lfcc_jax.losses.features import at as at
from lfcc_jax.losses.features import fitnet as fitnet
from lfcc_jax.losses.features import hcl as hcl
from lfcc_jax.losses.features import nst as nst
from lfcc_jax.losses.features import vid as vid
from lfcc_jax.losses.features import vid_scale_init as vid_scale_init
from lfcc_jax.losses.lfcc import lfcc_codes as lfcc_codes
from lfcc_jax.losses.lfcc import lfcc_init as lfcc_init
from lfcc_jax.losses.lfcc import lfcc_loss as lfcc_loss
from lfcc_jax.losses.logits import cross_entropy as cross_entropy
from lfcc_jax.losses.logits import dist as dist
from lfcc_jax.losses.logits import dkd as dkd
from lfcc_jax.losses.logits import kd as kd
from lfcc_jax.losses.logits import ofa as ofa
from lfcc_jax.losses.logits import standardize_logits as standardize_logits
from lfcc_jax.losses.logits import ttm as ttm
from lfcc_jax.losses.logits import wttm as wttm
from lfcc_jax.losses.memory import crd_nce as crd_nce
from lfcc_jax.losses.relations import cc as cc
from lfcc_jax.losses.relations import pkt as pkt
from lfcc_jax.losses.relations import rkd as rkd
from lfcc_jax.losses.relations import sp as sp
