"""Checks keyword arguments against a signature: names, types, and the bounds in its annotations."""

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lfcc_jax.errors import UserError, shown, unknown

# The float32 range: larger numbers overflow to infinity, smaller ones underflow to zero.
_LARGEST, _SMALLEST = 3.4028235e38, 1.1754944e-38


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition on a value, as part of its annotation: `temperature: Annotated[float, Positive] = 1.0`.

    Attributes:
      words: Description of a valid value; `{}` stands for the plain type, as in "positive {}".
      holds: Returns whether a value of the annotated type is valid.
    """

    words: str
    holds: Callable[[Any], bool]


Positive = Bound("positive {}", lambda x: x >= _SMALLEST)
NonNegative = Bound("non-negative {}", lambda x: x >= 0)
Fraction = Bound("{} in [0, 1]", lambda x: 0 <= x <= 1)
# Values closer to 1 round to 1 in float32.
HalfOpenFraction = Bound("{} in [0, 1)", lambda x: 0 <= x < 1 - 2**-25)
# Bounds on a tuple, not on its elements.
Nonempty = Bound("non-empty list of {}", lambda xs: len(xs) > 0)
Distinct = Bound("non-empty list of distinct {}", lambda xs: 0 < len(xs) == len(set(xs)))


def AtLeast(least: float) -> Bound:  # noqa: N802 - used like a class
    """Returns the bound `x >= least`."""
    return Bound(f"{{}} >= {least:g}", lambda x: x >= least)


def AtMost(most: float) -> Bound:  # noqa: N802
    """Returns the bound `x <= most`."""
    return Bound(f"{{}} up to {most:.15g}", lambda x: x <= most)


def Between(least: float, most: float) -> Bound:  # noqa: N802
    """Returns the bound `least <= x <= most`."""
    return Bound(f"{{}} between {least:.15g} and {most:.15g}", lambda x: least <= x <= most)


def Length(*lengths: int) -> Bound:  # noqa: N802
    """Returns a bound on the length of a tuple, which must be one of `lengths`."""
    return Bound(f"list of {' or '.join(map(str, lengths))} {{}}", lambda xs: len(xs) in lengths)


def checked_arguments(
    function: Callable[..., object],
    given: Mapping[str, Any],
    where: str,
    set_by_run: Mapping[str, Any] = MappingProxyType({}),
    read_by_caller: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns the keyword arguments for `function`: those `given` and those `set_by_run`, in one dict.

    Config blocks are read this way: each block is the keyword arguments of one function or class, so unused keys are
    errors, and values out of bounds are errors before any computation.

    Args:
      function: Function or class that the arguments are for.
      given: Argument names and values.
      where: Name of the block in error messages, for example "config.losses.kd".
      set_by_run: Arguments that the run supplies. `given` must not contain them.
      read_by_caller: Annotations of further arguments that `given` may contain. They are not returned.

    Returns:
      The arguments, for `function(**arguments)`.

    Raises:
      UserError: if a name is unknown (with the nearest one), set by the run or missing, or if a value does not have
        the annotated type, is out of its bounds, or is not finite.

    Examples:
      >>> def create(width: Annotated[int, Between(1, 512)] = 8): ...
      >>> checked_arguments(create, {"width": 0}, "config.student")
      Traceback (most recent call last):
      lfcc_jax.errors.UserError: config.student.width must be an integer between 1 and 512, got 0
    """
    check_value(given, Mapping, where)
    parameters = signature(function)
    wanted = {name: p.annotation for name, p in parameters.items() if name not in set_by_run} | dict(read_by_caller)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    for name, value in given.items():
        if name in set_by_run:
            raise UserError(f"{where}.{name} is set by the run and cannot be configured")
        if name in wanted:
            check_value(value, wanted[name], f"{where}.{name}")
        elif not (takes_any and isinstance(name, str)):
            raise unknown("key", name, wanted, where)
    arguments = {name: value for name, value in {**given, **set_by_run}.items() if name not in read_by_caller}
    if missing := [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    return arguments


def signature(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function or class by name, except those that are not settings."""
    parameters = inspect.signature(function).parameters
    hidden = ("parent", "name") if inspect.isclass(function) else ()  # fields that Linen adds
    return {n: p for n, p in parameters.items() if n not in hidden and p.kind is not p.VAR_KEYWORD}


def check_value(value: Any, wanted: Any, where: str) -> None:
    """Raises `UserError` unless a value matches an annotation and its bounds.

    Args:
      value: Any value.
      wanted: An annotation. Types that no config value can have, such as arrays, match everything.
      where: Name of the value in error messages, for example "config.seed".
    """
    if get_origin(wanted) in (dict, Mapping) and isinstance(value, Mapping):
        for name, item in value.items():
            check_value(item, get_args(wanted)[1], f"{where}.{name}")
    elif not _fits(value, wanted):
        hint = ""
        if isinstance(value, str) and (nearest := difflib.get_close_matches(value, _choices(wanted), n=1, cutoff=0.5)):
            hint = f"; did you mean {nearest[0]!r}?"
        raise UserError(f"{where} must be {_in_words(wanted)}, got {shown(value)}{hint}")


def _fits(value: Any, wanted: Any) -> bool:
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind is Annotated:
        return _fits(value, parts[0]) and all(part.holds(value) for part in parts[1:] if isinstance(part, Bound))
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    if kind is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if not parts:  # a plain `tuple`
            return True
        if parts[1:] == (...,):
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return True


_NOUNS = {int: "integer", float: "number", str: "string", dict: "block of settings", Mapping: "block of settings"}


def _in_words(wanted: Any) -> str:
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if kind is Literal:
        return " or ".join(map(repr, parts)) if len(parts) < 3 else f"one of {', '.join(map(repr, parts))}"
    if kind is bool:
        return "True or False"
    if kind is NoneType:
        return "None"
    phrase = _phrase(wanted)
    if not phrase[0].isalpha():
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _phrase(wanted: Any, plural: bool = False) -> str:
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind is Annotated:
        bounds = [part for part in parts[1:] if isinstance(part, Bound)]
        if (get_origin(parts[0]) or parts[0]) is tuple and bounds:
            return bounds[0].words.format(_phrase(get_args(parts[0])[0], plural=True))
        phrase = _phrase(parts[0], plural)
        for bound in bounds:
            phrase = bound.words.format(phrase)
        return phrase
    if kind is tuple:
        if not parts:
            return "list"
        count = "" if parts[1:] == (...,) else f"{len(parts)} "
        return f"list of {count}{_phrase(parts[0], plural=True)}"
    return _NOUNS.get(kind, str(wanted)) + ("s" if plural else "")


def _choices(wanted: Any) -> list[str]:
    """Returns the strings among the values that an annotation lists."""
    if get_origin(wanted) is Literal:
        return [part for part in get_args(wanted) if isinstance(part, str)]
    return [choice for part in get_args(wanted) for choice in _choices(part)]
