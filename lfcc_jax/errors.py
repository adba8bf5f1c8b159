"""Errors that a person can act on: what was given, what would do, and the nearest match."""

import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin


class UserError(ValueError):
    """An input that cannot work. Its message is one line and needs no traceback."""


def unknown(what: str, given: object, known: Iterable[str], where: str = "") -> UserError:
    """Returns the error for a name that is not among `known`, with the nearest one.

    Args:
      what: what the name stands for, for example "network".
      given: the name as it was given.
      known: the names that would do.
      where: where the name was found, for example "config.student.name".

    Returns:
      A `UserError`, to be raised by the caller.

    Examples:
      >>> print(unknown("network", "resnt_nano", ["resnet_nano", "vit_nano"], "config.student.name"))
      config.student.name: unknown network 'resnt_nano'; did you mean 'resnet_nano'? Known: resnet_nano, vit_nano.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} '{given}'{hint} Known: {', '.join(known) or 'none'}.")


def checked_arguments(function: Callable[..., object], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns `given` as a dict if `function` takes every one of its names and misses none.

    This is how a config block is read: each block is the keyword arguments of one function or class, so a key that
    nobody reads cannot exist.

    Args:
      function: what will be called with the arguments.
      given: argument names and values.
      where: where the arguments stand, for the message.

    Returns:
      The arguments, for `function(**arguments)`.

    Raises:
      UserError: for a name that `function` does not take (with the nearest one), one that it needs, or a value of
        another type than the function's annotation, as far as that is a number, a string, a truth value, or several.
    """
    parameters = dict(inspect.signature(function).parameters)
    if inspect.isclass(function):  # a Linen module has two fields that are no settings
        parameters = {name: p for name, p in parameters.items() if name not in ("parent", "name")}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    for name in given:
        if name not in parameters and not takes_any:
            raise unknown("key", name, parameters, where)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    for name, value in given.items():
        if name in parameters and not _fits(value, wanted := parameters[name].annotation):
            raise UserError(f"{where}.{name}: {value!r} will not do; {_in_words(wanted)} will")
    return dict(given)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", NoneType: "none"}


def _fits(value: Any, wanted: Any) -> bool:
    """Returns whether a value is of an annotated type; True for types that no config holds."""
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if kind in (bool, str, NoneType, Mapping):
        return isinstance(value, kind)
    if kind is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if not parts:  # a plain `tuple`, of anything
            return True
        if parts[1:] == (...,):
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return True


def _in_words(wanted: Any) -> str:
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if kind is tuple and not parts:
        return "a list"
    if kind is tuple:
        return f"a list of {len(parts) if parts[1:] != (...,) else 'any length'}, each {_in_words(parts[0])}"
    return _WORDS.get(kind) or "a block of names and values"
