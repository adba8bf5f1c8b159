"""timm's state dicts to variables and back, strict both ways."""

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
from lfcc_jax.convert.tables import Row, table
from lfcc_jax.errors import UserError, unknown
from lfcc_jax.models import Network

_HEADS = ("keep", "new")
_HEAD = ("params", "head")

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
    """Returns the variables of a network from the tensors of timm's network of that name.

    Position embeddings and relative-position tables are resized as timm does if the image size is another one.

    Args:
      name: of the network; see `lfcc_jax.models.create`.
      state_dict: numpy arrays or torch tensors by timm's names. Trainers' wrappers (`state_dict`, `model`, `module.`)
        and the names of older timm releases and of the authors of Swin and ConvNeXt are understood.
      head: `keep` the classifier, or make a `new` one.
      num_classes: of the network; as the checkpoint's classifier has if None. Another number needs `new`.
      image_size: height and width of the images, in pixels; that of the name if None.
      seed: of the new classifier.
      **overrides: further fields of the network, for example `depth`.

    Returns:
      `params`, and `batch_stats` if it has BatchNorm, float32 numpy arrays.

    Raises:
      UserError: If tensors are missing, unexpected, of another shape, not floating or not finite, five of which are
        named; if the name is unknown; if the checkpoint has another number of classes.
    """
    if head not in _HEADS:
        raise unknown("treatment of the head", head, _HEADS)
    if head == "new" and num_classes is None:
        raise UserError("a new head needs num_classes")
    network = models.create(name, 1 if num_classes is None else num_classes, image_size, **overrides)
    not_kept = {row.timm for row in table(network) if row.path is None}
    rows = [row for row in table(network) if row.path is not None]
    state = {key: _array(value) for key, value in timm_names(network, state_dict).items() if key not in not_kept}
    of_head = {row.path: row.timm for row in rows if row.path[:2] == _HEAD}
    if head == "keep":
        network = network.clone(num_classes=_classes(state.get(of_head[(*_HEAD, "bias")]), num_classes))
    else:
        rows = [row for row in rows if row.path not in of_head]
        state = {key: value for key, value in state.items() if key not in of_head.values()}

    shapes = {path: leaf.shape for path, leaf in flatten_dict(network.variable_shapes()).items()}
    wanted = {row.timm: _timm_shape(row, shapes) for row in rows}
    for row in rows:
        if row.timm in state:
            state[row.timm] = _resized(network, row, state[row.timm], wanted[row.timm])
    _check(f"this is no checkpoint of {name}", wanted, {key: value.shape for key, value in state.items()})

    _check_numbers(f"this is no usable checkpoint of {name}", {row.timm: state[row.timm] for row in rows})

    arrays = {path: np.empty(shapes[path], np.float32) for path in {row.path for row in rows}}
    for row in rows:
        arrays[row.path][... if row.block is None else row.block] = row.layout.from_timm(state[row.timm])
    variables = unflatten_dict(arrays)
    if head == "new":
        made = jax.jit(lambda key: network.init(key, jnp.zeros(network.image_shape()))["params"]["head"])(
            jax.random.key(seed)
        )
        variables["params"]["head"] = jax.tree.map(np.asarray, made)
    return variables


def to_timm(name: str, variables: Mapping[str, Any], **overrides: object) -> dict[str, np.ndarray]:
    """Returns the tensors that `timm.create_model(name).load_state_dict(..., strict=True)` takes.

    Args:
      name: of the network; see `lfcc_jax.models.create`.
      variables: as `from_timm` returns them and training changes them, with the classifier.
      **overrides: fields of the network that differ from the name's, for example `image_size`.

    Returns:
      float32 numpy arrays by timm's names. BatchNorm's `num_batches_tracked`, which only a running mean without
      momentum needs, is 0.

    Raises:
      UserError: If arrays are missing, unexpected, of another shape or not finite, five of which are named; if the name
        is unknown.
    """
    arrays = {path: np.asarray(value, np.float32) for path, value in flatten_dict(dict(variables)).items()}
    network = models.create(name, _classes(arrays.get((*_HEAD, "bias"))), **overrides)
    wanted = {"/".join(path): leaf.shape for path, leaf in flatten_dict(network.variable_shapes()).items()}
    given = {"/".join(path): value.shape for path, value in arrays.items()}
    _check(f"these are no variables of {name}", wanted, given)
    state = {}
    for row in table(network):
        if row.path is None:
            state[row.timm] = np.zeros((), np.int64)
        else:
            array = arrays[row.path] if row.block is None else arrays[row.path][row.block]
            state[row.timm] = np.ascontiguousarray(row.layout.to_timm(array))
    _check_numbers(
        f"these are no usable variables of {name}", {r.timm: state[r.timm] for r in table(network) if r.path}
    )
    return state


def _classes(bias: np.ndarray | None, num_classes: int | None = None) -> int:
    """Returns the number of classes of a classifier's bias, which must be `num_classes` unless that is None."""
    if bias is None or bias.ndim != 1:
        return num_classes or 1
    if num_classes not in (None, len(bias)):
        raise UserError(
            f"the checkpoint's classifier has {len(bias)} classes, not {num_classes}; head='new' (--head new) makes one"
        )
    return len(bias)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    return np.asarray(value)


def _timm_shape(row: Row, shapes: Shapes) -> tuple[int, ...]:
    shape = shapes[row.path] if row.block is None else shapes[row.path][1:]
    return row.layout.to_timm(np.broadcast_to(np.float32(0), shape)).shape


def _resized(network: Network, row: Row, value: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Returns what depends on the image's size in the wanted one, and everything else as it is."""
    if value.shape == wanted or value.ndim != len(wanted) or value.shape[-1] != wanted[-1]:
        return value
    if row.path[-1] == "pos_embed" and _is_square(value.shape[1] - network.prefix):
        return resize_positions(value, wanted[1], network.prefix)
    if row.path[-1] == "position_bias" and _is_square(value.shape[0]):
        return resize_position_bias(value, wanted[0])
    return value


def _shown(name: object) -> str:
    """Returns the name of a tensor as it can be printed on one line."""
    return str(name) if str(name).isprintable() else repr(name)


def _is_square(n: int) -> bool:
    return n > 0 and math.isqrt(n) ** 2 == n


def _check_numbers(what: str, state: Mapping[str, np.ndarray]) -> None:
    """Raises unless all numbers are finite in float32, and variances not negative."""
    wrong = []
    for name, value in sorted(state.items()):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            wrong.append(f"{name} is {value.dtype}, not floating")
            continue
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if bad := value.size - np.count_nonzero(np.isfinite(value)):
            wrong.append(f"{name} has {bad} of {value.size} numbers that are NaN or infinite in float32")
        elif name.endswith("running_var") and (value < 0).any():
            wrong.append(f"{name} has negative variances")
    if wrong:
        raise UserError(f"{what}: {_listed(wrong)}")


def _listed(wrong: Sequence[str]) -> str:
    """Returns the first five of what is wrong, and how many more there are."""
    return "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")


def _check(what: str, wanted: Shapes, given: Shapes) -> None:
    if given and not wanted.keys() & given.keys():
        raise UserError(
            f"{what}: no tensor has a name that is expected; the first is {_shown(min(given))}, and {min(wanted)} is "
            "wanted. Is it of another network?"
        )
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    unexpected = [f"{_shown(name)} is unexpected" for name in sorted(given.keys() - wanted.keys())]
    misshapen = [
        f"{name} is {list(given[name])}, not {list(wanted[name])}"
        for name in sorted(wanted.keys() & given.keys())
        if tuple(given[name]) != tuple(wanted[name])
    ]
    if wrong := [*missing, *unexpected, *misshapen]:
        raise UserError(
            f"{what}: of {len(wanted)} tensors {len(missing)} are missing and {len(misshapen)} have another shape, "
            f"{len(unexpected)} are unexpected: {_listed(wrong)}"
        )
