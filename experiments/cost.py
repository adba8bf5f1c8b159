"""What a program costs: the products of a traced program, and the instructions of a compiled one."""

import dataclasses
import math
import re
from typing import Any

_LINE = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<kind>[\w-]+)\((?P<operands>[^)]*)\).*")
_Computations = dict[str, list[re.Match]]


def count_macs(jaxpr: Any, platform: str = "") -> float:
    """Returns the number of multiplications in the convolutions and matrix products of a program, on all devices.

    Args:
      jaxpr: The program.
      platform: For example "tpu", if `jax.lax.platform_dependent` has a branch for it. Of other branches, the last
        counts; that is right for GPUs, where the others are calls of cuDNN.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, params["dimension_numbers"]
            # A dilated input, as in the gradient of a strided convolution, is mostly zeros.
            of_each = kernel.size / kernel.shape[numbers.rhs_spec[0]] / math.prod(params["lhs_dilation"])
            total += equation.outvars[0].aval.size * of_each
        inner = [value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        if branches := params.get("branches"):
            platforms = params.get("branches_platforms") or ()
            chosen = [branch for branch, names in zip(branches, platforms, strict=False) if platform in (names or ())]
            inner.append((chosen or branches)[-1])
        repeats = 1
        if name == "scan":
            repeats = params["length"]
        elif name == "shard_map":
            repeats = params["mesh"].size  # its program is that of one device
        total += repeats * sum(count_macs(getattr(value, "jaxpr", value), platform) for value in inner)
    return total


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program, as XLA prints it.

    Attributes:
      kind: Its name, or that of the library's function that it calls.
      result: Shape of its result, with the layout: `f32[2,3]{1,0}`, or a tuple of shapes.
      operands: Shapes of its operands.
      operation: What it is part of in the traced program; empty if XLA does not say.
      turns: Number of turns of the innermost loop around it; 1 outside of loops.
      from_state: For each operand, whether it is a part of the loop's state.
      to_state: For each array of the result, whether it is a part of the loop's next state.
    """

    kind: str
    result: str
    operands: tuple[str, ...]
    operation: str
    turns: int = 1
    from_state: tuple[bool, ...] = ()
    to_state: tuple[bool, ...] = ()


def instructions(text: str) -> list[Instruction]:
    """Returns the instructions of a compiled program, as `jax.stages.Compiled.as_text` prints it.

    Those of a loop are repeated as often as it runs, if that can be read. Those inside of fusions and of conditionals'
    branches are left out.
    """
    computations = {}
    for part in re.split(r"\n(?=ENTRY|%)", text):
        if match := re.match(r"(ENTRY )?%([\w.-]+) ", part):
            lines = [_LINE.match(line) for line in part.splitlines()[1:]]
            computations["" if match[1] else match[2]] = [line for line in lines if line]
    return _of_computation(computations, "", 1)


def _of_computation(computations: _Computations, name: str, turns: int, body: bool = False) -> list[Instruction]:
    lines = computations[name]
    read, written = _state(lines) if body else (set(), set())
    shapes: dict[str, str] = {}
    found = []
    for line in lines:
        kind, shape = line["kind"], line["shape"]
        shapes[line["name"]] = shape
        if kind == "while":
            inner, count = re.search(r"body=%([\w.-]+)", line[0])[1], _turns(computations, line[0])
            found += _of_computation(computations, inner, count, body=True) * count
            continue
        if kind == "call":
            found += _of_computation(computations, re.search(r"to_apply=%([\w.-]+)", line[0])[1], turns)
            continue
        if target := re.search(r'custom_call_target="([^"]*)"', line[0]):
            kind = target[1]
        operation = re.search(r'op_name="([^"]*)"', line[0])
        operands = re.findall(r"%([\w.-]+)", line["operands"])
        found.append(
            Instruction(
                kind,
                shape,
                tuple(shapes.get(other, "") for other in operands),
                operation[1] if operation else "",
                turns,
                tuple(other in read for other in operands),
                tuple((line["name"], i) in written for i in range(len(arrays(shape)))),
            )
        )
    return found


def _state(lines: list[re.Match]) -> tuple[set[str], set[tuple[str, int]]]:
    """Returns the names in a loop's body that hold parts of its state, and the results that form its next state.

    Results are pairs of a name and a position, which is 0 unless the result is a tuple.
    """
    by_name = {line["name"]: line for line in lines}

    def first_operand(line: re.Match) -> str:
        return (re.findall(r"%([\w.-]+)", line["operands"]) or [""])[0]

    def source(name: str) -> tuple[str, int]:
        """Follows a name through what only renames it."""
        index = 0
        while (line := by_name.get(name)) and line["kind"] in ("bitcast", "get-tuple-element"):
            if line["kind"] == "get-tuple-element":
                index = int(re.search(r"index=(\d+)", line[0])[1])
            name = first_operand(line)
        return name, index

    states = {line["name"] for line in lines if line["kind"] == "parameter"}
    read = {name for name in by_name if source(name)[0] in states}
    (root,) = [line for line in lines if line["root"]]
    names = re.findall(r"%([\w.-]+)", root["operands"]) if root["kind"] == "tuple" else [root["name"]]
    return read, {source(name) for name in names}


def _turns(computations: _Computations, line: str) -> int:
    """Returns how often a loop runs, as XLA notes it or as its condition, `i < constant`, says; 1 if neither does."""
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(count[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    counts = [int(each["operands"]) for each in lines if each["kind"] == "constant" and each["operands"].isdigit()]
    return counts[0] if len(counts) == 1 else 1


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
