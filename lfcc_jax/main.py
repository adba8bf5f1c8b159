"""Command line: `python -m lfcc_jax.main --config=configs/digits.py:method=teacher --workdir=runs/teacher`."""

import errno
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lfcc_jax import runtime
from lfcc_jax.config_files import OptionsHelp, load_config
from lfcc_jax.errors import UserError, shown
from lfcc_jax.training import processes
from lfcc_jax.training.config import read_config
from lfcc_jax.training.preemption import Preempted, answer_interrupts

_DEFAULT = Path(__file__).with_name("default_config.py")
_HELP = {"-h", "--help", "-help", "--helpshort", "--helpfull"}


def run(main: Callable[[], object]) -> None:
    """Parses `--config`, `--workdir` and `--distributed` into `flags.FLAGS`, and calls `main`.

    Exits with one line and status 1 on invalid input. Status 143 means that the run was stopped (SIGTERM, Ctrl-C) and
    saved a checkpoint; 130, that Ctrl-C came when there was nothing to save, or for the second time. If one of several
    processes fails or is interrupted, all exit with its status and message.
    """
    app.run(lambda _: guarded(main, flags.FLAGS.distributed), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    argv = [f"--config={_DEFAULT}{a.removeprefix('--config=')}" if a.startswith("--config=:") else a for a in argv]
    asks_for_help = any(argument in _HELP for argument in argv)
    if asks_for_help:
        argv = argv[:1] + [a for a in argv if a.startswith("--config=")]
    if not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    try:
        # Accept keys that the config file lacks. `read_config` and the readers of its blocks reject unknown ones.
        new_keys = {"lock_config": False, "accept_new_attributes": True, "sys_argv": argv}
        about = "Config file; FILE:NAME=VALUE,... sets its options, --config.KEY=VALUE a key."
        config_flags.DEFINE_config_file("config", None, about, **new_keys)
        flags.FLAGS["config"].parser = _ConfigParser(argv)
        flags.DEFINE_string("workdir", None, "Directory of the run. Running the same command again resumes it.")
        flags.DEFINE_bool("distributed", False, "One of several processes (TPU pod, Slurm, MPI).")
        rest = flags.FLAGS(argv)
        read_config(flags.FLAGS.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")
    if asks_for_help:
        print(_help())
        sys.exit(0)
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument '{rest[1]}'; flags start with --")
    return rest


class _ConfigParser(flags.ArgumentParser):
    """Loads the config file, and creates missing blocks for the keys that `argv` sets."""

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
                    path = ".".join(["config", *parents[:depth]])
                    raise UserError(f"--config.{key}: {path} must be a block of settings, got {shown(block)}")
        return config


def _help() -> str:
    """Returns the help text: flags, options and keys of the config file, and names of networks and losses."""
    from lfcc_jax import methods, models

    filename, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    spec = importlib.util.spec_from_file_location("described_config", filename)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main = sys.modules["__main__"].__spec__
    used = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    used += [flag for name in ("config", "workdir", "distributed") if (flag := flags.FLAGS[name]) not in used]

    def wrapped(text: str, first: str = "  ") -> str:
        return textwrap.fill(text, 118, initial_indent=first, subsequent_indent=" " * 17 if first.strip() else first)

    parts = [f"usage: python -m {main.name if main else sys.argv[0]} --config=FILE:NAME=VALUE,... --workdir=DIRECTORY"]
    parts += [""]
    for flag in used:
        default = "" if flag.default in (None, False, []) else f" Default: {flag.default_as_str}."
        parts.append(wrapped(flag.help + default, f"  --{flag.name:12} "))
    try:
        module.get_config("help")
    except OptionsHelp as options:
        parts += ["", f"Options of {filename}, as in --config=FILE:method=kd"]
        for option, values in options.args[0].items():
            parts.append(wrapped(f"{option}: {', '.join(values) if isinstance(values, tuple) else repr(values)}"))
    except Exception:  # `get_config` takes no argument, or does not use `parse_argument`
        pass
    parts += ["", f"Keys of {filename} (all others: lfcc_jax/training/config.py)"]
    parts += [f"  --config.{key}={value!r}" for key, value in _flat(flags.FLAGS.config.to_dict()).items()]
    parts += ["", "Networks, for config.student.name and config.teacher.name", wrapped(", ".join(models.list_models()))]
    parts += ["", "Losses, for the blocks of config.losses", wrapped(", ".join(methods.list_methods()))]
    return "\n".join(parts)


def _flat(config: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _one_line(error: BaseException) -> str:
    cause = error
    while cause and not isinstance(cause, UserError):  # absl and ml_collections wrap exceptions of parsers
        cause = cause.__cause__ or cause.__context__
    if cause:
        return str(cause)
    return str(UserError(" ".join(str(error.args[0] if error.args else error).split())))


def guarded(main: Callable[[], object], distributed: bool = False) -> None:
    """Calls `main` with a compilation cache, and exits as `run` describes.

    Args:
      main: Function without arguments.
      distributed: Whether this is one of several processes.
    """
    logging.set_verbosity(logging.ERROR)
    if distributed:
        import jax

        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            sys.exit(f"error: --distributed: no cluster found: {' '.join(str(error).split())}")
        processes.watch_peers()
    runtime.cache_programs()
    runtime.collect_garbage_rarely()
    try:
        main()
    except UserError as error:
        processes.end(1, f"error: {error}")
    except KeyboardInterrupt:
        end_interrupted()
    except Preempted as note:
        print(note, file=sys.stderr)
        sys.exit(143)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            processes.end(1, f"error: cannot write {error.filename or 'a file'}: {error.strerror}")
        if not distributed:
            raise
        processes.end_after(error)


def end_interrupted() -> None:
    """Ends the program after Ctrl-C when there is nothing to save."""
    processes.end(130, "interrupted; the same command resumes from the last checkpoint, if any")


def _main() -> None:
    from lfcc_jax.train import train_and_evaluate

    if flags.FLAGS.workdir is None:
        raise UserError("--workdir is required, for example --workdir=runs/first")
    answer_interrupts(end_interrupted)
    train_and_evaluate(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    run(_main)
