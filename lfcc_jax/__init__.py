"""Distill any vision teacher into any vision student in JAX.

This module exports the portable core, which needs only jax and numpy: low-pass filters, losses, spectra and CKA.
"""

from lfcc_jax.cka import linear_cka as linear_cka
from lfcc_jax.filters import KINDS as KINDS
from lfcc_jax.filters import compact as compact
from lfcc_jax.filters import compact_grids as compact_grids
from lfcc_jax.filters import low_pass as low_pass
from lfcc_jax.filters import operator as operator
from lfcc_jax.losses import info_nce as info_nce
from lfcc_jax.losses import lfcc_codes as lfcc_codes
from lfcc_jax.losses import lfcc_init as lfcc_init
from lfcc_jax.losses import lfcc_loss as lfcc_loss
from lfcc_jax.losses import lfcc_points as lfcc_points
from lfcc_jax.spectrum import energy_below as energy_below
from lfcc_jax.spectrum import radial_spectrum as radial_spectrum
