"""Command line: `python -m lfcc_jax.main --config=configs/digits.py --workdir=runs/digits`."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from lfcc_jax.errors import UserError
from lfcc_jax.training import processes
from lfcc_jax.training.preemption import Preempted, answer_interrupts

_DEFAULT = Path(__file__).parent.parent / "configs" / "digits.py"


def run(main: Callable[[], object]) -> None:
    """Parses `--config`, `--workdir` and `--distributed`, and calls `main`, which finds them in `flags.FLAGS`.

    Ends with one line and status 1 on invalid input. Status 143 means that the run was told to stop (SIGTERM, Ctrl-C)
    and has saved itself; 130, that Ctrl-C came when there was nothing to save, or a second time. When
    one of several processes fails or is interrupted, all end with its status and its line.
    """
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        # Defined here and not above, because defining --config already reads the command line, and may fail.
        config_flags.DEFINE_config_file("config", str(_DEFAULT), "What to run; --config.key=value changes a key.")
        flags.DEFINE_string("workdir", None, "Where the run lives. The same directory again goes on with it.")
        flags.DEFINE_bool("distributed", False, "This is one of several processes (TPU pod, Slurm, MPI).")
        rest = flags.FLAGS(argv)
        getattr(flags.FLAGS.config, "seed", None)  # a config file that does not load fails here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument '{rest[1]}'; flags begin with --")
    return rest


def _one_line(error: BaseException) -> str:
    what = "unknown config key: " if isinstance(error, AttributeError | KeyError) else ""
    while error.args and isinstance(error.args[0], BaseException):  # ml_collections wraps its KeyErrors
        error = error.args[0]
    # It also puts the traceback of a config file into its message; what the file said comes last.
    message = str(error.args[0] if error.args else error).split("UserError: ")[-1]
    if "[Errno" in message:
        message = "--config: " + message[message.index("[Errno") :]
    return what + " ".join(message.split())


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
