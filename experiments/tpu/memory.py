"""Counts the bytes that a program compiled for a TPU moves between its main memory (HBM) and the chip."""

import math
import re

from experiments.cost import arrays, instructions

# Instructions that move nothing; what an asynchronous one moves is counted where it starts.
_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "AllocateBuffer", "ConcatBitcast")
_Array = tuple[int, tuple[int, ...], str]


def hbm_bytes(text: str) -> int:
    """Returns the bytes that a compiled program reads from HBM and writes there, close to an upper bound.

    Arrays have the size that they have there, with their last two sides padded to tiles. Those that XLA keeps on the
    chip count nothing. What reads a part of an array counts as reading all of it, except slices, and arrays of a loop's
    state with a first side of as many parts as the loop has turns: a turn reads or writes one.

    Args:
      text: The program, as `jax.stages.Compiled.as_text` prints it.
    """
    total = 0
    for each in instructions(text):
        if each.kind in _NOTHING or each.kind.endswith("-done"):
            continue
        results = arrays(each.result)
        if each.kind == "copy-start":  # (copy, source, context)
            total += _in_hbm(results[0]) + _in_hbm(results[1])
        elif each.kind == "slice-start":  # ((whole,), part, context)
            (_, _, of_whole), (bits, sides, of_part) = results[:2]
            total += _in_hbm((bits, sides, of_part)) + (0 if _on_chip(of_whole) else _padded((bits, sides, of_part)))
        else:
            read = [
                (array, state)
                for shape, state in zip(each.operands, each.from_state, strict=True)
                for array in arrays(shape)
            ]
            for array, state in (*zip(results, each.to_state, strict=True), *read):
                stacked = state and array[1][:1] == (each.turns,)
                total += _in_hbm(array) // (each.turns if stacked else 1)
    return total


def _on_chip(layout: str) -> bool:
    return "S(" in layout  # HBM is space 0, which is not printed


def _in_hbm(array: _Array) -> int:
    return 0 if _on_chip(array[2]) else _padded(array)


def _padded(array: _Array) -> int:
    """Returns the bytes of an array whose layout is `ORDER:T(ROWS,COLUMNS)...`: its sides are padded to tiles."""
    bits, sides, layout = array
    order, tile = re.match(r"[\d,]*", layout)[0], re.search(r"T\(([\d,]+)\)", layout)
    if tile and order:
        sides = [sides[int(axis)] for axis in order.split(",")]  # the fastest first
        for i, n in enumerate(map(int, reversed(tile[1].split(",")))):
            sides[i : i + 1] = [math.ceil(side / n) * n for side in sides[i : i + 1]] or [n]
    return math.prod(sides) * bits // 8
