"""Errors about the user's input: one short line with the expected and the given value, and the nearest match."""

import difflib
import reprlib
from collections.abc import Iterable

# Maximum length in characters of a message, of the list of known names in it, and of a value in it.
_LONGEST, _LONGEST_LIST, _LONGEST_VALUE = 700, 300, 80


class UserError(ValueError):
    """Invalid input. The message is one line of at most 700 characters and needs no traceback."""

    def __init__(self, message: str):
        message = " ".join(message.splitlines())
        if len(message) > _LONGEST:  # keep the problem at the beginning and the advice at the end
            kept = _LONGEST // 2 - 4
            message = f"{message[:kept]} [...] {message[-kept:]}"
        super().__init__(message)


def unknown(what: str, given: object, known: Iterable[str], where: str = "") -> UserError:
    """Returns the error for a name that is not among `known`, with the nearest one.

    Args:
      what: Kind of name, for example "network".
      given: The unknown name.
      known: The valid names. If there are many, the error lists only some, the nearest ones first.
      where: Config key or flag with the name, for example "config.student.name".

    Returns:
      A `UserError`, to be raised by the caller.

    Examples:
      >>> print(unknown("network", "resnt_nano", ["resnet_nano", "vit_nano"], "config.student.name"))
      config.student.name: unknown network 'resnt_nano'; did you mean 'resnet_nano'? Known: resnet_nano, vit_nano.
    """
    known = sorted(known)
    name = given if isinstance(given, str) and len(given) <= _LONGEST_VALUE else shown(given).strip("'\"")
    nearest = difflib.get_close_matches(name, known, n=8, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} '{name}'{hint} Known: {_listed(known, nearest)}.")


def shown(value: object) -> str:
    """Returns the `repr` of a value for an error message, shortened if it is long.

    Examples:
      >>> print(shown([1, 2]), shown(list(range(1000))))
      [1, 2] [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, ...]
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _LONGEST_VALUE
    short.maxlist = short.maxtuple = short.maxdict = 20
    try:
        text = short.repr(value)
    except ValueError:  # more digits than Python converts
        text = "an integer with too many digits"
    if len(text) > _LONGEST_VALUE:
        text = f"{text[: _LONGEST_VALUE - 13]}...{text[-10:]}"
    return text


def _listed(known: list[str], nearest: list[str]) -> str:
    """Returns all names, or as many as fit, the nearest first."""
    everything = ", ".join(known) or "none"
    if len(everything) <= _LONGEST_LIST:
        return everything
    some = ""
    for name in [*nearest, *(name for name in known if name not in nearest)]:
        if len(some) + len(name) > _LONGEST_LIST:
            break
        some += f"{name}, "
    return f"{some}... ({len(known)} in all)"
