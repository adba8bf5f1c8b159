"""A trained network on disk: its variables, and a `network.json` with its description and digests of both."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lfcc_jax import storage
from lfcc_jax.arguments import signature
from lfcc_jax.digest import changes, digests, not_finite, some
from lfcc_jax.errors import UserError
from lfcc_jax.models.adapters import Adapter
from lfcc_jax.models.network import Network
from lfcc_jax.models.registry import create

# What `network.json` must contain.
_DESCRIPTION = {"name": str, "num_classes": int, "image_size": int, "overrides": dict}
# Beginning of the names of networks that no config can name.
IN_PYTHON = "python:"
# Fields of networks that were saved under an earlier name.
_RENAMED = {"crop": "crop_fraction"}


def save(directory: epath.PathLike, variables: Any, description: Mapping[str, Any]) -> None:
    """Writes a network that can be loaded without the run that made it: its variables and a `network.json`.

    `network.json` gets the description, a digest of every array (`digests`), and a digest of all that (`sha256`).

    Args:
      directory: Created; an existing one is replaced.
      variables: `params`, and `batch_stats` if there are any.
      description: Arguments of `models.create` (`name`, `num_classes`, `image_size`, `overrides`), and anything else
        worth recording, as JSON.

    Raises:
      UserError: if a variable is NaN or infinite, or the files cannot be written.
    """
    directory = storage.resolve(directory)
    if wrong := not_finite(variables):
        raise UserError(f"the network cannot be saved to {directory}: {some(wrong)} contains NaN or infinity")
    description = json.loads(storage.to_json(description)) | {"digests": digests(variables)}
    storage.drop_background_errors()
    with storage.errors_in_one_line(f"cannot write {directory}"), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "variables", variables, force=True)
    if jax.process_index() == 0:
        storage.write_json(directory / "network.json", description | {"sha256": _sha256(description)})


def describe(path: epath.PathLike) -> dict[str, Any]:
    """Returns what `save` wrote about a network: its `network.json`.

    Args:
      path: The directory, or the work directory of the run that wrote it.

    Raises:
      UserError: if the directory has no network, or a damaged one.
    """
    about = _network_directory(path) / "network.json"
    made = storage.read_json(about)
    try:
        if not isinstance(made, dict):
            raise ValueError(f"it must be an object, got {type(made).__name__}")
        if missing := [key for key in _DESCRIPTION if key not in made | {"overrides": {}}]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        recorded = made.pop("sha256", None)
        unchanged = recorded in (None, _sha256(made))
        made = {"overrides": {}} | made
        for key, kind in _DESCRIPTION.items():
            if not isinstance(made[key], kind):
                raise ValueError(f"`{key}` must be of type {kind.__name__}, got {made[key]!r:.100}")
        if not unchanged:
            raise ValueError("it was changed after it was written")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{about} is damaged: {error}") from error
    overrides = {_RENAMED.get(key, key): value for key, value in made["overrides"].items()}
    return made | {"overrides": {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}}


def load(path: epath.PathLike) -> tuple[Network | Adapter, Any]:
    """Returns a saved network and its variables, on the default device.

    Args:
      path: The directory that `save` wrote, or the work directory of the run that wrote it.

    Returns:
      The network, and its variables: `network.apply(variables, images, train=False)`.

    Raises:
      UserError: if the directory has no network, or a damaged one.
    """
    network = _create(_network_directory(path), describe(path))
    return network, load_variables(path, network)


def load_variables(path: epath.PathLike, network: Network | Adapter, shardings: Any = None) -> Any:
    """Returns the variables that `save` wrote, after verifying that they fit `network` and are undamaged.

    Networks saved by versions without digests are loaded too.

    Args:
      path: The directory, or the work directory of the run that wrote it.
      network: The network that will use the variables. If it has no classifier, that of the saved network is dropped.
      shardings: Shardings of the variables, as a tree of the same structure; the default device if None.

    Raises:
      UserError: if the directory has no network; if arrays are missing, unexpected or of another shape (the first five
        are named); if the networks differ in a field that changes no shape, such as the number of heads; if an array is
        damaged, or contains NaN or infinity.
    """
    directory = _network_directory(path)
    made = describe(path)
    files = directory / "variables"
    shapes = network.variable_shapes()
    if isinstance(network, Network) and made["num_classes"] and not network.num_classes:
        whole = network.clone(num_classes=made["num_classes"])
        if shardings is not None:
            shardings = _like(whole.variable_shapes(), shardings, _replicated(jax.tree.leaves(shardings)[0]))
        return _like(shapes, load_variables(path, whole, shardings))
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes)
    with storage.errors_in_one_line(f"{files} is damaged"), ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(files).item_metadata
        if stored is None:
            raise UserError(f"{files} is damaged: it has no list of arrays")
        _check_leaves(directory, made, stored.tree, shapes, network)
        _check_fields(directory, made, network)
        target = jax.tree.map(
            lambda s, leaf, placement: jax.ShapeDtypeStruct(s.shape, leaf.dtype, sharding=placement),
            shapes,
            stored.tree,
            shardings,
        )
        variables = checkpointer.restore(files, target)
    if "digests" in made and (wrong := changes(made["digests"], digests(variables))):
        raise UserError(f"{files} is damaged: {some(wrong)} differs from what was saved")
    if wrong := not_finite(variables):
        raise UserError(f"{files} cannot be used: {some(wrong)} contains NaN or infinity")
    return jax.tree.map(lambda x, s: x.astype(s.dtype), variables, shapes)


def fingerprint(description: Mapping[str, Any], variables: Any) -> str:
    """Returns a digest of everything that a network's predictions depend on: its description and variables.

    Args:
      description: The result of `describe`.
      variables: The network's variables, sharded in any way. Every process must call this.
    """
    return _sha256({key: description[key] for key in _DESCRIPTION} | {"digests": digests(variables)})


def _like(tree: Any, values: Any, missing: Any = None) -> Any:
    """Returns the part of `values` that `tree` has, and `missing` for all others."""
    if not isinstance(tree, Mapping):
        return missing if values is None else values
    values = {} if values is None else values
    return {key: _like(subtree, values.get(key), missing) for key, subtree in tree.items()}


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns the placement of a full copy on the same devices."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


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


def _sha256(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _create(directory: epath.Path, made: Mapping[str, Any]) -> Network | Adapter:
    if repeated := made["overrides"].keys() & _DESCRIPTION.keys():
        raise UserError(f"{directory / 'network.json'} is damaged: `overrides` must not contain {min(repeated)}")
    if made["name"].startswith(IN_PYTHON):
        raise UserError(
            f"{directory / 'network.json'}: the network was given as a Python object, {made['name']}; make it again, "
            "and use models.load_variables(path, network)"
        )
    try:
        return create(made["name"], made["num_classes"], made["image_size"], **made["overrides"])
    except UserError as error:
        raise UserError(f"{directory / 'network.json'}: {error}") from error


def _check_leaves(
    directory: epath.Path, made: Mapping[str, Any], stored: Any, shapes: Any, network: Network | Adapter
) -> None:
    there, here = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (stored, shapes))
    )
    wrong = [
        *(f"{name} is missing" for name in sorted(here.keys() - there.keys())),
        *(f"{name} is unexpected" for name in sorted(there.keys() - here.keys())),
        *(
            f"{name} has shape {there[name]}, expected {here[name]}"
            for name in sorted(there.keys() & here.keys())
            if there[name] != here[name]
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        name = network.name if isinstance(network, Adapter) else type(network).__name__
        raise UserError(
            f"{directory} holds a {made['name']} with {made['num_classes']} classes, not this "
            f"{name} with {network.num_classes}: {'; '.join(wrong[:5])}{more}"
        )


def _check_fields(directory: epath.Path, made: Mapping[str, Any], network: Network | Adapter) -> None:
    if isinstance(network, Adapter):  # its settings are the user's
        return
    stored = _create(directory, made)
    fields = [name for name in signature(type(network)) if name not in network.free_fields]
    wrong = [
        f"{name} is {getattr(stored, name, 'unknown')}, expected {getattr(network, name)}"
        for name in fields
        if getattr(stored, name, "unknown") != getattr(network, name)
    ]
    if wrong:
        raise UserError(f"{directory} holds another {made['name']}: {'; '.join(wrong)}")
