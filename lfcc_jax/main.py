"""Command line: `python -m lfcc_jax.main --config=configs/digits.py:method=teacher --workdir=runs/teacher`."""

import importlib.util
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from lfcc_jax.errors import UserError
from lfcc_jax.training.config import OptionsHelp
from lfcc_jax.training.preemption import Preempted

_DEFAULT = Path(__file__).with_name("default_config.py")
_HELP = {"-h", "--help", "-help", "--helpshort", "--helpfull"}


def run(main: Callable[[], object]) -> None:
    """Parses `--config`, `--workdir` and `--distributed`, and calls `main`, which finds them in `flags.FLAGS`.

    Ends with one line and status 1 after an input that will not do. Status 143 means that the run was told to stop
    (SIGTERM, Ctrl-C) and has saved itself.
    """
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    argv = [f"--config={_DEFAULT}{a.removeprefix('--config=')}" if a.startswith("--config=:") else a for a in argv]
    asks_for_help = any(argument in _HELP for argument in argv)
    if asks_for_help:
        argv = argv[:1] + [a for a in argv if a.startswith("--config=")]
    try:
        # Defined here and not above, because defining --config already reads the command line, and may fail.
        config_flags.DEFINE_config_file(
            "config",
            str(_DEFAULT),
            "Config file; FILE:NAME=VALUE,... sets its options, --config.KEY=VALUE a key.",
        )
        flags.DEFINE_string("workdir", None, "Directory of the run. The same command again resumes it.")
        flags.DEFINE_bool("distributed", False, "One of several processes (TPU pod, Slurm, MPI).")
        rest = flags.FLAGS(argv)
        getattr(flags.FLAGS.config, "seed", None)  # a config file that does not load fails here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")
    if asks_for_help:
        print(_help())
        sys.exit(0)
    if len(rest) > 1:
        sys.exit(f"error: unexpected argument '{rest[1]}'; flags begin with --")
    return rest


def _help() -> str:
    """Returns the help text: flags, and the options, keys and names that the config file knows."""
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
    except OptionsHelp as answer:
        parts += ["", f"Options of {filename}, as in --config=FILE:method=kd"]
        for option, values in answer.args[0].items():
            parts.append(wrapped(f"{option}: {', '.join(values) if isinstance(values, tuple) else repr(values)}"))
    except Exception:  # `get_config` takes no argument, or reads it in another way
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


def cache_programs() -> None:
    """Keeps compiled programs in the user's cache directory, unless JAX is told of another place.

    A run that is resumed, or repeated with another seed, then does not compile again.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lfcc_jax"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home costs the time of compiling, and nothing else
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


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
    cache_programs()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted outside the training loop; the same command goes on from the last checkpoint, if any")
    except Preempted as note:
        print(note, file=sys.stderr)
        sys.exit(143)


def _main() -> None:
    from lfcc_jax.train import train_and_evaluate

    if flags.FLAGS.workdir is None:
        raise UserError("--workdir: missing; name the directory of the run, for example --workdir=runs/first")
    train_and_evaluate(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    run(_main)
