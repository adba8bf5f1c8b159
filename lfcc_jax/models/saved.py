"""A trained network on disk: its variables, and a `network.json` that says which network they are of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lfcc_jax import storage
from lfcc_jax.errors import UserError
from lfcc_jax.models.network import Network
from lfcc_jax.models.registry import create


def save(directory: epath.PathLike, variables: Any, description: Mapping[str, Any]) -> None:
    """Writes a network that needs nothing of the run that made it: its variables, and a `network.json` about them.

    Args:
      directory: made new; one that exists is replaced.
      variables: `params`, and `batch_stats` if there are any.
      description: the arguments of `models.create` (`name`, `num_classes`, `image_size`, `overrides`), and what else is
        worth knowing, as JSON.
    """
    directory = storage.resolve(directory)
    storage.drop_background_errors()
    with storage.errors_in_one_line(f"cannot write {directory}"), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "variables", variables, force=True)
    if jax.process_index() == 0:
        storage.write_json(directory / "network.json", description)


def describe(path: epath.PathLike) -> dict[str, Any]:
    """Returns what `save` wrote about a network: its `network.json`.

    Args:
      path: the directory, or the work directory of the run that wrote it.

    Raises:
      UserError: if nothing is there.
    """
    about = _network_directory(path) / "network.json"
    try:
        description = storage.read_json(about)
        overrides = description.get("overrides", {})
        if missing := [key for key in ("name", "num_classes", "image_size") if key not in description]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{about} is damaged: {error}") from error
    return description | {"overrides": {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}}


def load(path: epath.PathLike) -> tuple[Network, Any]:
    """Returns a saved network and its variables, on the default device.

    Args:
      path: the directory that `save` wrote, or the work directory of the run that did.

    Returns:
      The network, and its variables: `network.apply(variables, images, train=False)`.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    made = describe(path)
    network = create(made["name"], made["num_classes"], made["image_size"], **made["overrides"])
    return network, load_variables(path, network)


def load_variables(path: epath.PathLike, network: Network, shardings: Any = None) -> Any:
    """Returns the variables that `save` wrote, if they are those of `network`.

    Args:
      path: the directory, or the work directory of the run that wrote it.
      network: what the variables are for.
      shardings: where to put them, as a tree like the variables; on the default device if None.

    Raises:
      UserError: if nothing is there; if any array is missing, unknown or of another shape, all of which are named; or
        if the networks differ in what is no array, for example the number of heads.
    """
    directory = _network_directory(path)
    shapes = network.variable_shapes()
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(directory / "variables").item_metadata
        if stored is None:
            raise UserError(f"{directory / 'variables'} is damaged: it does not say what arrays it holds")
        _check_leaves(directory, stored.tree, shapes, network)
        _check_fields(directory, network)
        if shardings is None:
            shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
        target = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings)
        return checkpointer.restore(directory / "variables", target)


def _network_directory(path: epath.PathLike) -> epath.Path:
    directory = storage.resolve(path)
    if storage.exists(directory / "student"):
        directory = directory / "student"
    if not storage.exists(directory / "network.json"):
        raise UserError(
            f"no finished network in {directory}: a run writes network.json and variables/ into <workdir>/student when "
            "it ends"
        )
    return directory


def _check_leaves(directory: epath.Path, stored: Any, shapes: Any, network: Network) -> None:
    there, here = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (stored, shapes))
    )
    wrong = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'unknown')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if wrong:
        made = describe(directory)
        raise UserError(
            f"{directory} holds a {made['name']} with {made['num_classes']} classes, not this "
            f"{type(network).__name__} with {network.num_classes}: {'; '.join(wrong)}"
        )


# What a network may be given anew without becoming another one.
_FREE_FIELDS = (
    *("parent", "name", "crop", "interpolation", "dtype", "remat", "scan", "dropout", "drop_path"),
    *("narrow", "layer_scale"),  # these only say how training starts
)


def _check_fields(directory: epath.Path, network: Network) -> None:
    made = describe(directory)
    stored = create(made["name"], made["num_classes"], made["image_size"], **made["overrides"])
    fields = [field.name for field in dataclasses.fields(network) if field.name not in _FREE_FIELDS]
    wrong = [
        f"{name} is {getattr(stored, name, 'unknown')} there and {getattr(network, name)} here"
        for name in fields
        if getattr(stored, name, "unknown") != getattr(network, name)
    ]
    if wrong:
        raise UserError(f"{directory} holds another {made['name']}: {'; '.join(wrong)}")
