"""Converts timm state dicts to variables and back. Strict in both directions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lfcc_jax import models
from lfcc_jax.convert.names import timm_names
from lfcc_jax.convert.positions import resize_position_bias, resize_positions
from lfcc_jax.convert.tables import Row, is_head, table
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.models import Network

_HEADS = ("keep", "new")

Shapes = Mapping[Any, tuple[int, ...]]


def from_timm(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    head: Literal["keep", "new"] = "keep",
    num_classes: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    **overrides: object,
) -> dict[str, Any]:
    """Returns the variables of a network, converted from timm's network of the same name.

    Position embeddings and relative-position tables are resized as in timm if the image size differs.

    Args:
      name: Name of the network; see `lfcc_jax.models.create`.
      state_dict: Numpy arrays or torch tensors by timm's names. Trainers' wrappers (`state_dict`, `model`, `module.`)
        and the names used by older timm releases and by the authors of Swin and ConvNeXt are accepted.
      head: `keep` for the checkpoint's classifier, `new` for a newly initialized one.
      num_classes: Number of classes, 0 for no classifier; None for that of the checkpoint, 0 if it has no classifier. A
        different number requires `new`.
      image_size: Height and width of the images, in pixels; None for the network's default.
      seed: Seed of the new classifier.
      **overrides: Further fields of the network, for example `depth`.

    Returns:
      `params`, and `batch_stats` if the network has BatchNorm, as float32 numpy arrays.

    Raises:
      UserError: if tensors are missing, unexpected, of the wrong shape, not floating-point or not finite (the message
        names up to five); if the name is unknown; if the checkpoint has a different number of classes.
    """
    if head not in _HEADS:
        raise unknown("value", head, _HEADS, "head")
    if head == "new" and num_classes is None:
        raise UserError("num_classes is required for a new head")
    network = models.create(name, 1 if num_classes is None else num_classes, image_size, **overrides)
    rows = table(network.clone(num_classes=1))
    ignored = {row.timm for row in rows if row.path is None}
    state = {key: _array(value) for key, value in timm_names(network, state_dict).items() if key not in ignored}
    head_tensors = {row.timm: row.path for row in rows if is_head(row)}
    if head == "keep":
        kept = {path[-1]: state[key] for key, path in head_tensors.items() if key in state}
        network = network.clone(num_classes=_classes(kept, num_classes))
        rows = table(network)
    else:
        rows = [row for row in rows if not is_head(row)]
        state = {key: value for key, value in state.items() if key not in head_tensors}
    rows = [row for row in rows if row.path is not None]

    shapes = {path: leaf.shape for path, leaf in flatten_dict(network.variable_shapes()).items()}
    expected = {row.timm: _shape_in_timm(row, shapes) for row in rows}
    for row in rows:
        if row.timm in state:
            state[row.timm] = _resize(network, row, state[row.timm], expected[row.timm])
    _check_shapes(f"not a checkpoint of {name}", expected, {key: value.shape for key, value in state.items()})
    _check_values(f"unusable checkpoint of {name}", {row.timm: state[row.timm] for row in rows})

    arrays = {path: np.empty(shapes[path], np.float32) for path in {row.path for row in rows}}
    for row in rows:
        arrays[row.path][... if row.block is None else row.block] = row.layout.from_timm(state[row.timm])
    variables = unflatten_dict(arrays)
    if head == "new" and network.num_classes:
        new_head = jax.jit(lambda key: network.init(key, jnp.zeros(network.image_shape()))["params"]["head"])(
            jax.random.key(seed)
        )
        variables["params"]["head"] = jax.tree.map(np.asarray, new_head)
    return variables


def to_timm(name: str, variables: Mapping[str, Any], **overrides: object) -> dict[str, np.ndarray]:
    """Returns tensors for `timm.create_model(name).load_state_dict(..., strict=True)`.

    Args:
      name: Name of the network; see `lfcc_jax.models.create`.
      variables: Variables of the network, as returned by `from_timm`, with the classifier if there is one.
      **overrides: Fields of the network that differ from the defaults, for example `image_size`.

    Returns:
      Float32 numpy arrays by timm's names. BatchNorm's `num_batches_tracked`, used only without momentum, is 0.

    Raises:
      UserError: if arrays are missing, unexpected, of the wrong shape or not finite (the message names up to five); if
        the name is unknown.
    """
    arrays = {path: np.asarray(value, np.float32) for path, value in flatten_dict(dict(variables)).items()}
    head = {path[-1]: value for path, value in arrays.items() if path[:2] == ("params", "head")}
    network = models.create(name, _classes(head), **overrides)
    expected = {"/".join(path): leaf.shape for path, leaf in flatten_dict(network.variable_shapes()).items()}
    given = {"/".join(path): value.shape for path, value in arrays.items()}
    _check_shapes(f"not variables of {name}", expected, given)
    state = {}
    for row in table(network):
        if row.path is None:
            state[row.timm] = np.zeros((), np.int64)
        else:
            array = arrays[row.path] if row.block is None else arrays[row.path][row.block]
            state[row.timm] = np.ascontiguousarray(row.layout.to_timm(array))
    _check_values(f"unusable variables of {name}", {r.timm: state[r.timm] for r in table(network) if r.path})
    return state


def _classes(head: Mapping[str, np.ndarray], num_classes: int | None = None) -> int:
    """Returns the number of classes of a classifier, `kernel` and `bias`; 0 if both are missing.

    Raises if it is not `num_classes`, unless that is None.
    """
    if not head:
        return num_classes or 0
    bias = head.get("bias")
    if bias is None or bias.ndim != 1:
        return num_classes or 1
    if num_classes not in (None, len(bias)):
        raise UserError(
            f"the checkpoint's classifier has {len(bias)} classes, not {num_classes}; use head='new' (--head new)"
        )
    return len(bias)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    return np.asarray(value)


def _shape_in_timm(row: Row, shapes: Shapes) -> tuple[int, ...]:
    shape = shapes[row.path] if row.block is None else shapes[row.path][1:]
    return row.layout.to_timm(np.broadcast_to(np.float32(0), shape)).shape


def _resize(network: Network, row: Row, value: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    """Returns position tables resized to the expected shape, and other tensors unchanged."""
    if value.shape == expected or value.ndim != len(expected) or value.shape[-1] != expected[-1]:
        return value
    if row.path[-1] == "pos_embed" and _is_square(value.shape[1] - network.prefix_positions):
        return resize_positions(value.astype(np.float32), expected[1], network.prefix_positions)
    if row.path[-1] == "position_bias" and _is_square(value.shape[0]):
        return resize_position_bias(value.astype(np.float32), expected[0])
    return value


def _printable(name: object) -> str:
    """Returns the name of a tensor in a form that prints on one line."""
    return str(name) if str(name).isprintable() else repr(name)


def _is_square(n: int) -> bool:
    return n > 0 and math.isqrt(n) ** 2 == n


def _check_values(prefix: str, state: Mapping[str, np.ndarray]) -> None:
    """Raises unless all values are finite in float32 and all variances non-negative."""
    problems = []
    for name, value in sorted(state.items()):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(f"{name} must be floating-point, got {value.dtype}")
            continue
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if bad := value.size - np.count_nonzero(np.isfinite(value)):
            problems.append(f"{name} has {bad} of {value.size} numbers that are NaN or infinite in float32")
        elif name.endswith("running_var") and (value < 0).any():
            problems.append(f"{name} has negative variances")
    if problems:
        raise UserError(f"{prefix}: {_listed(problems)}")


def _listed(problems: Sequence[str]) -> str:
    """Returns the first five problems, and the number of the others."""
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def _check_shapes(prefix: str, expected: Shapes, given: Shapes) -> None:
    if given and not expected.keys() & given.keys():
        raise UserError(
            f"{prefix}: no tensor name matches; expected names like {min(expected)}, got names like "
            f"{_printable(min(given))}. Is it from another network?"
        )
    missing = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    unexpected = [f"{_printable(name)} is unexpected" for name in sorted(given.keys() - expected.keys())]
    misshapen = [
        f"{name} has shape {list(given[name])}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if tuple(given[name]) != tuple(expected[name])
    ]
    if problems := [*missing, *unexpected, *misshapen]:
        raise UserError(
            f"{prefix}: {len(missing)} of {len(expected)} tensors are missing, {len(misshapen)} have the wrong shape, "
            f"{len(unexpected)} are unexpected: {_listed(problems)}"
        )
