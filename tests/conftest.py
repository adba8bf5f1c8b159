"""Every test runs on eight simulated devices and with numpy's silent rank promotion refused."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
