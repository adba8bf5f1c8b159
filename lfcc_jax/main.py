"""Command line: `python -m lfcc_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from lfcc_jax.errors import UserError
from lfcc_jax.train import train_and_evaluate
from lfcc_jax.training.preemption import Preempted

_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"
_CONFIG = config_flags.DEFINE_config_file("config", str(_DEFAULT), "What to run; --config.key=value changes a key.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives. The same directory again goes on with it.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes (TPU pod, Slurm, MPI).")


def main(argv: list[str]) -> None:
    """Runs the config. Exits with 1 after an input that will not do, with 143 after SIGTERM."""
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument '{argv[1]}'; flags begin with --")
    logging.set_verbosity(logging.ERROR)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    try:
        train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Preempted as note:
        print(note, file=sys.stderr)
        sys.exit(143)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
