"""Counts the collectives in a compiled program."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start|-done)?\((?:.*?chain_id=\"(\d+)\")?")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)(?:e\w+)?\[([\d,]*)\]")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns the number of collectives of each kind in a program's HLO, and the bytes of their results.

    Those of a loop count once.
    """
    sizes: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for i, (shape, kind, end, chain) in enumerate(_COLLECTIVE.findall(text)):
        # Of an asynchronous pair, only the end is counted: its shape is that of the result alone.
        if end != "-start":
            # XLA may split a collective into a chain, to overlap it with arithmetic; each piece has the whole shape.
            sizes[kind][chain or f"alone {i}"] = sum(
                math.prod(int(n) for n in dimensions.split(",") if n) * int(bits) // 8
                for _, bits, dimensions in _ARRAY.findall(shape)
            )
    return {kind: (len(each), sum(each.values())) for kind, each in sizes.items()}
