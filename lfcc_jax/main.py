"""Command line: `python -m lfcc_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lfcc_jax.errors import UserError, shown
from lfcc_jax.training import processes
from lfcc_jax.training.config import load_config, read_config
from lfcc_jax.training.preemption import Preempted, answer_interrupts

_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"


def run(main: Callable[[], object]) -> None:
    """Parses `--config`, `--workdir` and `--distributed`, and calls `main`, which finds them in `flags.FLAGS`.

    Ends with one line and status 1 on invalid input. Status 143 means that the run was told to stop (SIGTERM, Ctrl-C)
    and has saved itself; 130, that Ctrl-C came when there was nothing to save, or a second time. When one of several
    processes fails or is interrupted, all end with its status and its line.
    """
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    if not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    try:
        # Keys that the config file does not have are added; `read_config` and the functions that read a block know
        # which of them exist.
        new_keys = {"lock_config": False, "accept_new_attributes": True, "sys_argv": argv}
        config_flags.DEFINE_config_file("config", None, "What to run; --config.key=value changes a key.", **new_keys)
        flags.FLAGS["config"].parser = _ConfigParser(argv)
        flags.DEFINE_string("workdir", None, "Where the run lives. The same directory again goes on with it.")
        flags.DEFINE_bool("distributed", False, "This is one of several processes (TPU pod, Slurm, MPI).")
        rest = flags.FLAGS(argv)
        read_config(flags.FLAGS.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument '{rest[1]}'; flags begin with --")
    return rest


class _ConfigParser(flags.ArgumentParser):
    """Loads the config file, and adds to the config the blocks of the keys that `argv` sets, where it has none."""

    def __init__(self, argv: list[str]):
        self._keys = [match[1] for argument in argv if (match := re.match(r"--?config\.([^=]*)", argument))]

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config."""
        config = load_config(argument)
        for key in self._keys:
            block, *parents = config, *key.split(".")[:-1]
            for depth, name in enumerate(parents, start=1):
                if block.get(name) is None:
                    block[name] = ConfigDict()
                block = block[name]
                if not isinstance(block, ConfigDict):
                    place = ".".join(["config", *parents[:depth]])
                    raise UserError(f"--config.{key}: {place} is {shown(block)}, not a block of settings")
        return config


def _one_line(error: BaseException) -> str:
    cause = error
    while cause and not isinstance(cause, UserError):  # absl and ml_collections wrap what a parser raises
        cause = cause.__cause__ or cause.__context__
    if cause:
        return str(cause)
    return str(UserError(" ".join(str(error.args[0] if error.args else error).split())))


def _guarded(main: Callable[[], object]) -> None:
    logging.set_verbosity(logging.ERROR)
    if flags.FLAGS.distributed:
        import jax

        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            sys.exit(f"error: --distributed: no cluster was found here: {' '.join(str(error).split())}")
        processes.watch_peers()
    try:
        main()
    except UserError as error:
        processes.end(1, f"error: {error}")
    except KeyboardInterrupt:
        _end_interrupted()
    except Preempted as note:
        print(note, file=sys.stderr)
        sys.exit(143)
    except Exception as error:
        if not flags.FLAGS.distributed:
            raise
        processes.end_after(error)


def _end_interrupted() -> None:
    processes.end(130, "interrupted; the same command resumes from the last checkpoint, if any")


def _main() -> None:
    from lfcc_jax.train import train_and_evaluate

    if flags.FLAGS.workdir is None:
        raise UserError("--workdir: missing; give the directory where the run shall live, for example runs/first")
    answer_interrupts(_end_interrupted)
    train_and_evaluate(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    run(_main)
