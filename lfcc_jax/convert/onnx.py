"""Converts a JAX function of a batch of images to ONNX, primitive by primitive.

Whatever does not depend on the images is computed here and stored as a constant. Loops are unrolled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import TensorProto, helper, numpy_helper

from lfcc_jax import storage
from lfcc_jax.errors import UserError

# Widely supported: onnxruntime since 1.18.
_OPSET, _IR_VERSION = 18, 10
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
_END = np.iinfo(np.int64).max


def to_onnx(
    function: Callable[[jax.Array], dict[str, jax.Array]], image_shape: Sequence[int], metadata: Mapping[str, str]
) -> bytes:
    """Returns an ONNX model with the input `images` and an output for each value that the function returns.

    Args:
      function: Function of float32 images `[batch, height, width, channels]`. Returns arrays by name.
      image_shape: Height, width and channels.
      metadata: Strings to store in the model, by name.

    Raises:
      UserError: if the function cannot be traced with a batch of unknown size, or uses an operation that has no
        conversion; the message names it.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    try:
        closed, outputs = jax.make_jaxpr(function, return_shape=True)(images)
    except UserError:
        raise
    except Exception as error:  # the network may be anybody's
        raise UserError(
            f"the network cannot be traced with a batch of unknown size: {type(error).__name__}: "
            f"{storage.one_line(error)}"
        ) from error
    graph = _Graph(batch)
    # The leaves of a dict are in the order of its sorted keys.
    names = sorted(outputs)
    for name, value in zip(names, graph.run(closed.jaxpr, closed.consts, ["images"]), strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [name]))
    nodes, constants = graph.used(names)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [_tensor_info("images", ("batch", *image_shape))],
            [_tensor_info(name, ("batch", *outputs[name].shape[1:])) for name in names],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="lfcc_jax",
    )
    helper.set_model_props(model, dict(metadata))
    if model.ByteSize() >= 2**31:
        raise UserError(f"an ONNX file must be smaller than 2 GiB, this network needs {model.ByteSize():,} bytes")
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _tensor_info(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class _Graph:
    """Nodes and constants of an ONNX graph. A value is the name of a tensor, or an array if it is constant."""

    def __init__(self, batch: Any):
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._names: dict[Any, str] = {}
        self._batch_size: str | None = None

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Adds the nodes of a jaxpr. Returns its outputs."""
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom: Any) -> Any:
            return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            results = self._convert(equation, inputs)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _convert(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        primitive, params = equation.primitive.name, equation.params
        if primitive == "scan":
            return self._scan(params, inputs)
        if primitive == "cond" and not isinstance(inputs[0], str):
            branch = params["branches"][int(np.clip(inputs[0], 0, len(params["branches"]) - 1))]
            return self.run(branch.jaxpr, branch.consts, inputs[1:])
        if primitive == "platform_index":  # of `jax.lax.platform_dependent`
            return [np.asarray(params["platforms"].index(None))]  # the default
        if primitive in _CALLS:
            inner = next(value for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr))
            if isinstance(inner, ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, inputs)
            return self.run(inner, (), inputs)
        if primitive == "dim_as_value":
            return [_cast(self, equation, [self.reshape(self.shape([params["dim"]]), ())], ())]
        constant = not any(isinstance(value, str) for value in inputs)
        if constant and not any(self._is_dynamic(v.aval.shape) for v in equation.outvars):
            if primitive in _FOLDED:  # faster than compiling it for every shape
                return [_FOLDED[primitive](params, equation.outvars[0].aval, *map(np.asarray, inputs))]
            results = equation.primitive.bind(*inputs, **params)
            return results if equation.primitive.multiple_results else [results]
        if primitive not in _CONVERTERS:
            raise UserError(f"ONNX: no conversion for the operation '{primitive}'; --format=stablehlo has them all")
        for variable in (*equation.invars, *equation.outvars):
            if variable.aval.dtype.name not in _TYPES:
                raise UserError(f"ONNX: the operation '{primitive}' must be float32, got {variable.aval.dtype}")
        shapes = [atom.aval.shape for atom in equation.invars]
        results = _CONVERTERS[primitive](self, equation, inputs, shapes)
        return results if isinstance(results, list) else [results]

    def _scan(self, params: Mapping[str, Any], inputs: list[Any]) -> list[Any]:
        body = params["jaxpr"]
        if "num_consts" in params:
            num_consts, num_carry = params["num_consts"], params["num_carry"]
        else:  # since jax 0.12
            num_consts, num_carry = (len(group) for group in params["ft_in"].unpack()[:2])
        consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
        scanned, stacked = inputs[num_consts + num_carry :], []
        for i in range(params["length"])[:: -1 if params["reverse"] else 1]:
            xs = [self("Gather", x, np.int64(i), axis=0) if isinstance(x, str) else np.asarray(x)[i] for x in scanned]
            results = self.run(body.jaxpr, body.consts, [*consts, *carry, *xs])
            carry = results[:num_carry]
            stacked.append([self("Unsqueeze", y, np.array([0])) for y in results[num_carry:]])
        parts = zip(*(stacked[::-1] if params["reverse"] else stacked), strict=True)
        return [*carry, *(self("Concat", *part, axis=0) for part in parts)]

    def __call__(self, operation: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. Returns the name of its output, or a list of names."""
        names = [f"{operation}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(operation, [self.name(v) for v in inputs], names, names[0], **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Any) -> str:
        """Returns the name of a value; constants are added to the graph."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = (array.dtype, array.shape, array.tobytes()) if array.nbytes < 1024 else id(value)
        if key not in self._names:
            self._names[key] = f"constant_{len(self._constants)}"
            self._constants[self._names[key]] = array
            if isinstance(key, int):  # keeps the object, so that its id stays unique
                self._names[id(value), "kept"] = value
        return self._names[key]

    def used(self, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """Returns the nodes and constants that the outputs depend on."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        return kept[::-1], [numpy_helper.from_array(v, k) for k, v in self._constants.items() if k in needed]

    def _is_dynamic(self, shape: Sequence[Any]) -> bool:
        return any(not isinstance(size, int | np.integer) for size in shape)

    def _multiple(self, size: Any) -> int:
        """Returns how many times the batch size a dynamic size is."""
        multiple = size // self.batch
        if self._is_dynamic((multiple,)) or not multiple * self.batch == size:
            raise UserError(f"ONNX: sizes must be multiples of the batch size, got {size}")
        return int(multiple)

    def shape(self, sizes: Sequence[Any]) -> Any:
        """Returns a shape as a constant, or as a tensor if it depends on the batch size."""
        if not self._is_dynamic(sizes):
            return np.asarray(sizes, np.int64)
        if self._batch_size is None:
            self._batch_size = self("Shape", "images", start=0, end=1)
        parts = [
            self("Mul", self._batch_size, np.asarray([self._multiple(size)], np.int64))
            if self._is_dynamic((size,))
            else np.asarray([size], np.int64)
            for size in sizes
        ]
        return self("Concat", *parts, axis=0)

    def reshape(self, x: Any, sizes: Sequence[Any]) -> Any:
        """Reshapes a tensor or constant."""
        if not isinstance(x, str):
            return np.asarray(x).reshape(sizes)
        dynamic = [size for size in sizes if self._is_dynamic((size,))]
        if len(dynamic) > 1:
            return self("Reshape", x, self.shape(sizes))
        return self("Reshape", x, np.asarray([-1 if self._is_dynamic((s,)) else s for s in sizes], np.int64))

    def transpose(self, x: Any, permutation: Sequence[int]) -> Any:
        """Transposes a tensor or constant."""
        if list(permutation) == list(range(len(permutation))):
            return x
        if not isinstance(x, str):
            return np.transpose(np.asarray(x), permutation)
        return self("Transpose", x, perm=list(permutation))

    def slice(self, x: Any, shape: Sequence[Any], starts: Sequence[Any], ends: Sequence[Any], steps: Any = None) -> Any:
        """Slices a tensor. Axes that are kept whole may be dynamic."""
        steps = steps or [1] * len(shape)
        cut = [
            axis
            for axis, (size, start, end, step) in enumerate(zip(shape, starts, ends, steps, strict=True))
            if not (step == 1 and not self._is_dynamic((start,)) and start == 0 and size == end)
        ]
        if not cut:
            return x
        picked = [[values[axis] for axis in cut] for values in (starts, ends)]
        if self._is_dynamic([*picked[0], *picked[1]]):
            raise UserError("ONNX: no conversion for slices of the batch")
        return self("Slice", x, *(np.asarray(v, np.int64) for v in (*picked, cut, [steps[axis] for axis in cut])))


def _node(operation: str, **attributes: Any) -> Callable[..., Any]:
    """Returns the converter of a primitive that is one ONNX operation on the same inputs."""
    return lambda graph, equation, inputs, shapes: graph(operation, *inputs, **attributes)


def _with_dtype(convert: Callable[[_Graph, Any, Any, Any], Any]) -> Callable[..., Any]:
    """Returns the converter of a unary primitive; `convert` gets a function that makes constants of its dtype."""

    def converted(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
        dtype = equation.invars[0].aval.dtype
        return convert(graph, inputs[0], lambda value: np.asarray(value, dtype), equation.params)

    return converted


def _reduction(operation: str) -> Callable[..., Any]:
    def convert(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
        if not equation.params["axes"]:
            return inputs[0]
        return graph(operation, inputs[0], np.asarray(equation.params["axes"], np.int64), keepdims=0)

    return convert


def _cast(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    return graph("Cast", inputs[0], to=_TYPES[equation.outvars[0].aval.dtype.name])


def _argument(operation: str) -> Callable[..., Any]:
    def convert(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
        index = graph(operation, inputs[0], axis=equation.params["axes"][0], keepdims=0)
        return _cast(graph, equation, [index], shapes)

    return convert


def _select(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    if len(inputs) != 3 or equation.invars[0].aval.dtype != bool:
        raise UserError("ONNX: no conversion for 'select_n' of more than two cases")
    condition, if_false, if_true = inputs
    return graph("Where", condition, if_true, if_false)


def _broadcast(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    target, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    aligned = [1] * len(target)
    for axis, size in zip(axes, shapes[0], strict=True):
        aligned[axis] = size
    x = inputs[0] if list(shapes[0]) == aligned else graph.reshape(inputs[0], aligned)
    sizes = [1 if had == wanted else wanted for had, wanted in zip(aligned, target, strict=True)]
    return graph("Expand", x, graph.shape(sizes)) if any(size != 1 for size in sizes) else x


def _tile(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    return graph("Tile", inputs[0], graph.shape(equation.params["reps"]))


def _pad(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise UserError("ONNX: no conversion for 'pad' between elements")
    return graph("Pad", inputs[0], np.asarray([*low, *high], np.int64), inputs[1], mode="constant")


def _slice(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    params = equation.params
    return graph.slice(inputs[0], shapes[0], params["start_indices"], params["limit_indices"], params["strides"])


def _dynamic_slice(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    x, *starts = inputs
    return _slice_at(graph, x, shapes[0], starts, equation.params["slice_sizes"], "dynamic_slice")


def _slice_at(graph: _Graph, x: Any, shape: Any, starts: Sequence[Any], sizes: Sequence[Any], primitive: str) -> Any:
    if any(isinstance(start, str) for start in starts):
        raise UserError(f"ONNX: no conversion for '{primitive}' at a position that depends on the image")
    begins = [0 if n == size else int(np.clip(s, 0, n - size)) for s, n, size in zip(starts, shape, sizes, strict=True)]
    ends = [size if not begin else begin + size for begin, size in zip(begins, sizes, strict=True)]
    return graph.slice(x, shape, begins, ends)


def _gather(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    """Converts indexing with constants: one slice, or some positions along one axis."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    x, indices = inputs
    if isinstance(indices, str) or numbers.operand_batching_dims:
        raise UserError("ONNX: no conversion for 'gather' at positions that depend on the image")
    indices = np.asarray(indices)
    if indices.ndim == 1:
        starts = [0] * len(shapes[0])
        for axis, start in zip(numbers.start_index_map, indices, strict=True):
            starts[axis] = start
        part = _slice_at(graph, x, shapes[0], starts, sizes, "gather")
        return graph.reshape(part, equation.outvars[0].aval.shape) if numbers.collapsed_slice_dims else part
    axes = numbers.start_index_map
    whole = all(size == n for i, (size, n) in enumerate(zip(sizes, shapes[0], strict=True)) if i not in axes)
    if len(axes) != 1 or numbers.collapsed_slice_dims != axes or not whole:
        raise UserError("ONNX: no conversion for 'gather' along several axes")
    axis, rank = axes[0], indices.ndim - 1
    positions = np.clip(indices[..., 0], 0, shapes[0][axis] - 1).astype(np.int64)
    taken = graph("Gather", x, positions, axis=axis)
    # ONNX puts the axes of the positions where the axis was; JAX, where `offset_dims` leaves room.
    free = [d for d in range(len(equation.outvars[0].aval.shape)) if d not in numbers.offset_dims]
    place = [*numbers.offset_dims[:axis], *free[:rank], *numbers.offset_dims[axis:]]
    return graph.transpose(taken, np.argsort(place).tolist())


def _split(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    sizes = np.asarray(equation.params["sizes"], np.int64)
    outputs = graph("Split", inputs[0], sizes, outputs=len(sizes), axis=equation.params["axis"])
    return outputs if len(sizes) > 1 else [outputs]


def _unstack(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    axis = equation.params["axis"]
    return [graph("Gather", inputs[0], np.int64(i), axis=axis) for i in range(len(equation.outvars))]


def _stack(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    axis = equation.params["axis"]
    return graph("Concat", *(graph("Unsqueeze", x, np.array([axis])) for x in inputs), axis=axis)


def _reverse(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    axes = equation.params["dimensions"]
    ones = np.ones(len(axes), np.int64)
    return graph("Slice", inputs[0], -ones, np.full(len(axes), -_END), np.asarray(axes, np.int64), -ones)


def _dot(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    (contracted, batched) = equation.params["dimension_numbers"]
    ranks = [len(shape) for shape in shapes]
    if not batched[0] and list(contracted[0]) == [ranks[0] - 1] and ranks[1] == 2:
        weights = graph.transpose(inputs[1], (0, 1) if contracted[1][0] == 0 else (1, 0))
        result = graph("MatMul", inputs[0], weights)
    else:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        sides = [[""] * rank for rank in ranks]
        for pairs in (batched, contracted):
            for axis, other in zip(*pairs, strict=True):
                sides[0][axis] = sides[1][other] = next(letters)
        free = ""
        for side in sides:
            for axis, letter in enumerate(side):
                if not letter:
                    side[axis] = next(letters)
                    free += side[axis]
        shared = "".join(sides[0][axis] for axis in batched[0])
        equation_ = f"{''.join(sides[0])},{''.join(sides[1])}->{shared}{free}"
        result = graph("Einsum", *inputs, equation=equation_)
    same = equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype
    return result if same else _cast(graph, equation, [result], shapes)


def _convolution(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    params = equation.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise UserError("ONNX: no conversion for transposed convolutions")
    low, high = zip(*params["padding"], strict=True)
    result = graph(
        "Conv",
        graph.transpose(inputs[0], numbers.lhs_spec),
        graph.transpose(inputs[1], numbers.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        pads=[*low, *high],
    )
    return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


def _pooling(operation: str) -> Callable[..., Any]:
    def convert(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
        params = equation.params
        windows = list(zip(*(params[k] for k in ("window_dimensions", "window_strides", "padding")), strict=True))
        spatial = [i for i, window in enumerate(windows) if window != (1, 1, (0, 0))]
        others = [i for i in range(len(windows)) if i not in spatial]
        # Pooling with a window of one pixel changes nothing.
        while len(others) > 2:
            spatial.append(others.pop(1))
        dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
        if len(others) != 2 or dilated or not spatial:
            raise UserError(
                f"ONNX: no conversion for '{equation.primitive.name}' over axes {spatial}, or with dilation"
            )
        order = [*others, *spatial]
        low, high = zip(*(windows[i][2] for i in spatial), strict=True)
        kernel = [windows[i][0] for i in spatial]
        average = {"count_include_pad": 1} if operation == "AveragePool" else {}
        result = graph(
            operation,
            graph.transpose(inputs[0], order),
            kernel_shape=kernel,
            strides=[windows[i][1] for i in spatial],
            pads=[*low, *high],
            **average,
        )
        if average:  # the sum
            result = graph("Mul", result, np.asarray(np.prod(kernel), equation.invars[0].aval.dtype))
        return graph.transpose(result, np.argsort(order).tolist())

    return convert


def _reshape(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    return graph.reshape(inputs[0], equation.outvars[0].aval.shape)


def _identity(graph: _Graph, equation: Any, inputs: list[Any], shapes: Any) -> Any:
    return list(inputs)


def _broadcast_constant(params: Mapping[str, Any], out: Any, x: np.ndarray) -> np.ndarray:
    aligned = np.ones(len(out.shape), int)
    aligned[list(params["broadcast_dimensions"])] = x.shape
    return np.broadcast_to(x.reshape(aligned), out.shape)


def _slice_constant(params: Mapping[str, Any], out: Any, x: np.ndarray) -> np.ndarray:
    bounds = zip(params["start_indices"], params["limit_indices"], params["strides"] or [1] * x.ndim, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


# Primitives that are computed with numpy if their inputs are constant.
_FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast_constant,
    "reshape": lambda params, out, x: x.reshape(out.shape),
    "slice": _slice_constant,
    "squeeze": lambda params, out, x: x.reshape(out.shape),
    "transpose": lambda params, out, x: x.transpose(params["permutation"]),
    "add": lambda params, out, x, y: np.add(x, y, dtype=out.dtype),
    "mul": lambda params, out, x, y: np.multiply(x, y, dtype=out.dtype),
    "rsqrt": lambda params, out, x: np.reciprocal(np.sqrt(x, dtype=out.dtype)),
}
# Primitives that call another jaxpr.
_CALLS = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
)
_SIMPLE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "eq": "Equal",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "sin": "Sin",
    "cos": "Cos",
    "erf": "Erf",
    "logistic": "Sigmoid",
}
_CONVERTERS: dict[str, Callable[..., Any]] = {
    **{primitive: _node(operation) for primitive, operation in _SIMPLE.items()},
    "ne": lambda graph, equation, inputs, shapes: graph("Not", graph("Equal", *inputs)),
    "clamp": lambda graph, equation, inputs, shapes: graph("Min", graph("Max", inputs[1], inputs[0]), inputs[2]),
    "rsqrt": _with_dtype(lambda graph, x, number, params: graph("Reciprocal", graph("Sqrt", x))),
    "square": _with_dtype(lambda graph, x, number, params: graph("Mul", x, x)),
    "integer_pow": _with_dtype(lambda graph, x, number, params: graph("Pow", x, number(params["y"]))),
    "exp2": _with_dtype(lambda graph, x, number, params: graph("Pow", number(2), x)),
    "expm1": _with_dtype(lambda graph, x, number, params: graph("Sub", graph("Exp", x), number(1))),
    "log1p": _with_dtype(lambda graph, x, number, params: graph("Log", graph("Add", x, number(1)))),
    "erfc": _with_dtype(lambda graph, x, number, params: graph("Sub", number(1), graph("Erf", x))),
    "stop_gradient": _identity,
    "copy": _identity,
    "copy_p": _identity,
    "optimization_barrier": _identity,
    "reduce_precision": _identity,
    "sharding_constraint": _identity,
    "convert_element_type": _cast,
    "select_n": _select,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": lambda graph, equation, inputs, shapes: graph.transpose(inputs[0], equation.params["permutation"]),
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda graph, equation, inputs, shapes: graph("Concat", *inputs, axis=equation.params["dimension"]),
    "tile": _tile,
    "pad": _pad,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "split": _split,
    "stack": _stack,  # since jax 0.12
    "unstack": _unstack,
    "cumsum": lambda graph, equation, inputs, shapes: graph(
        "CumSum", inputs[0], np.int64(equation.params["axis"]), reverse=int(equation.params["reverse"])
    ),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "argmax": _argument("ArgMax"),
    "argmin": _argument("ArgMin"),
    "reduce_window_max": _pooling("MaxPool"),
    "reduce_window_sum": _pooling("AveragePool"),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
