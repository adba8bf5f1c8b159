"""Errors that a person can act on: what was given, what would do, and the nearest match."""

import difflib
from collections.abc import Iterable


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
