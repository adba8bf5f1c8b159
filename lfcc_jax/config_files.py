"""Config files: runs the Python file behind `--config`, and parses the argument after its colon."""

import inspect
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from lfcc_jax.errors import UserError, shown, unknown


def load_config(file: str) -> ConfigDict:
    """Returns the config that a config file's `get_config` returns.

    Args:
      file: Path of the Python file. If `get_config` takes an argument, a colon and the argument follow, as in
        `configs/digits.py:method=kd`.

    Raises:
      UserError: if the file cannot be read, raises (with the line), or does not return a config.
    """
    path, colon, argument = file.partition(":")
    where = f"--config={path}"
    if Path(path).is_dir() or not path.endswith(".py"):
        raise UserError(f"{where} must be a Python file that defines get_config()")
    if not Path(path).exists():
        raise UserError(f"{where}: No such file or directory: {path!r}")
    try:
        loader = SourceFileLoader("config_file", path)
        module = sys.modules["config_file"] = ModuleType("config_file")  # dataclasses look it up there
        module.__file__ = path
        # Config files may import their neighbors from any working directory, as in `from configs import benchmark`.
        root = str(Path(path).resolve().parent.parent)
        if added := root not in sys.path:
            sys.path.append(root)
        try:
            loader.exec_module(module)
        finally:
            if added:
                sys.path.remove(root)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{where} must define get_config()")
        arguments = (argument,) if colon else ()
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            given = f"got {argument!r}" if colon else "got none; add one after a colon, as in --config=FILE:ARGUMENT"
            takes = "no argument" if colon else "an argument"
            raise UserError(f"{where}: get_config takes {takes}, {given}") from error
        config = get_config(*arguments)
        if not isinstance(config, ConfigDict | dict):
            raise UserError(f"{where}: get_config() must return a ConfigDict or a dict, got {shown(config)}")
        config = config if type(config) is ConfigDict else ConfigDict(config)  # not a FrozenConfigDict
        config.unlock()
        return config
    except UserError:
        raise
    except Exception as error:  # a config file may fail in any way
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines = [error.lineno]
        line = f", line {lines[-1]}" if lines else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{where}{line}: {type(error).__name__}: {message}") from error


class OptionsHelp(Exception):  # noqa: N818 - not an error
    """Raised by `parse_argument("help")`, with the options as its argument. `--help` gets a file's options this way."""


def parse_argument(argument: str, **options: Any) -> SimpleNamespace:
    """Parses the argument after the colon in `--config=file.py:name=value,name=value`.

    Args:
      argument: The argument. If it is empty, every option has its default.
      **options: The default of each option, which also sets its type; or a tuple of the valid values, default first.

    Returns:
      A namespace with the value of each option.

    Raises:
      UserError: for an unknown name or value, with the nearest one.
      OptionsHelp: if the argument is `help`.

    Examples:
      >>> parse_argument("method=kd,runlocal=true", method=("lfcc", "kd"), runlocal=False)
      namespace(method='kd', runlocal=True)
    """
    if argument == "help":
        raise OptionsHelp(options)
    chosen = {name: option[0] if isinstance(option, tuple) else option for name, option in options.items()}
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in options:
            raise unknown("name", name, options, "--config=file.py:...")
        option = options[name]
        if isinstance(option, tuple) and value not in option:
            raise unknown(name, value, option, "--config=file.py:...")
        if isinstance(option, bool):
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise unknown(name, value, ("true", "false"), "--config=file.py:...")
            chosen[name] = value.lower() in ("", "true", "1")
        else:
            try:
                chosen[name] = value if isinstance(option, tuple) else type(option)(value)
            except ValueError as error:
                raise UserError(
                    f"--config=file.py:...: {name} must be of type {type(option).__name__}, got {value!r}"
                ) from error
    return SimpleNamespace(**chosen)
