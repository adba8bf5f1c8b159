"""The parts of a run: state, step, sharding, optimizer, checkpoints, reports. `lfcc_jax.train` combines them."""
