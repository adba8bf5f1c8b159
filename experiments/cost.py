"""What a program costs: the products of a traced program, and the instructions of a compiled one."""

import dataclasses
import math
import re
from typing import Any


def count_macs(jaxpr: Any) -> float:
    """Returns the number of multiplications in the convolutions and matrix products of a program, on all devices."""
    total = 0.0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval if equation.outvars else None
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += out.size * kernel.size / kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        inner += equation.params.get("branches", ())[-1:]  # the default of `jax.lax.platform_dependent`
        repeats = {
            "scan": lambda params: params["length"],
            "shard_map": lambda params: params["mesh"].size,  # its program is that of one device
        }.get(equation.primitive.name, lambda params: 1)(equation.params)
        total += repeats * sum(count_macs(getattr(value, "jaxpr", value)) for value in inner)
    return total


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program, as XLA prints it.

    Attributes:
      kind: Its name, or that of the library's function that it calls.
      result: Shape of its result, with the layout: `f32[2,3]{1,0}`, or a tuple of shapes.
      operands: Shapes of its operands.
      operation: What it is part of in the traced program; empty if XLA does not say.
      turns: How often the loop runs that it is in; 1 outside of loops.
    """

    kind: str
    result: str
    operands: tuple[str, ...]
    operation: str
    turns: int = 1


def instructions(text: str) -> list[Instruction]:
    """Returns the instructions of a compiled program, as `jax.stages.Compiled.as_text` prints it.

    Those of a loop are repeated as often as it runs, if that can be read. Those of fusions and branches are left out.
    """
    computations = {}
    for part in re.split(r"\n(?=ENTRY|%)", text):
        if match := re.match(r"(ENTRY )?%([\w.-]+) ", part):
            computations["" if match[1] else match[2]] = part.splitlines()[1:]
    return _of_computation(computations, "", 1)


def _of_computation(computations: dict[str, list[str]], name: str, turns: int) -> list[Instruction]:
    shapes: dict[str, str] = {}
    found = []
    for line in computations[name]:
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\(([^)]*)\)", line)
        if match is None:
            continue
        name, shape, kind, operands = match.groups()
        shapes[name] = shape
        if kind == "while":
            body, count = re.search(r"body=%([\w.-]+)", line)[1], _turns(computations, line)
            found += _of_computation(computations, body, count) * count
            continue
        if kind == "call":
            found += _of_computation(computations, re.search(r"to_apply=%([\w.-]+)", line)[1], turns)
            continue
        if target := re.search(r'custom_call_target="([^"]*)"', line):
            kind = target[1]
        operation = re.search(r'op_name="([^"]*)"', line)
        of_operands = tuple(shapes.get(other, "") for other in re.findall(r"%([\w.-]+)", operands))
        found.append(Instruction(kind, shape, of_operands, operation[1] if operation else "", turns))
    return found


def _turns(computations: dict[str, list[str]], line: str) -> int:
    """Returns how often a loop runs, as XLA notes it or as its condition, `i < constant`, says; 1 if neither does."""
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(count[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    counts = re.findall(r" constant\((\d+)\)", "\n".join(computations.get(condition[1], []))) if condition else []
    return int(counts[0]) if len(counts) == 1 else 1


def arrays(shape: str) -> list[tuple[int, tuple[int, ...], str]]:
    """Returns bits per element, sides and layout of the arrays in a shape such as `(bf16[2,3]{1,0}, pred[])`."""
    found = []
    for dtype, sides, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?", shape):
        bits = 0 if dtype == "token" else int(re.match(r"[a-z]+(\d*)", dtype)[1] or 8)
        found.append((bits, tuple(int(n) for n in sides.split(",") if n), layout))
    return found


def array_bytes(shape: str) -> int:
    """Returns the bytes of the arrays in a shape, without padding."""
    return sum(math.prod(sides) * bits // 8 for bits, sides, _ in arrays(shape))
