"""Networks from a user's own file or package: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`."""

import contextlib
import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from lfcc_jax.arguments import checked_arguments, signature
from lfcc_jax.errors import UserError, shown, unknown
from lfcc_jax.models.adapters.adapter import Adapter, seeded
from lfcc_jax.models.adapters.equinox import from_equinox
from lfcc_jax.models.adapters.keras import from_keras
from lfcc_jax.models.adapters.linen import from_linen
from lfcc_jax.models.adapters.nnx import from_nnx
from lfcc_jax.models.network import Network

# Parameters of a factory through which the run initializes the network.
_KEYS = ("rngs", "key")
_TORCH = (
    "a torch network cannot run inside a JAX program: convert its weights (python -m lfcc_jax.convert for timm's "
    "networks), or write it in Flax, Equinox or Keras"
)


def adapt(network: Any, where: str) -> Network | Adapter:
    """Returns any supported network with the interface of `Network`.

    Args:
      network: A `Network`, an `Adapter`, a module of Flax Linen (alone or with its variables, as a pair), Flax NNX or
        Equinox (alone or with its state), or a Keras model.
      where: Name of the network in error messages.

    Raises:
      UserError: if it is something else.
    """
    parts = network if isinstance(network, tuple) and len(network) == 2 else (network,)
    module = parts[0]
    if isinstance(module, (Network, Adapter)) and len(parts) == 1:
        return module
    if isinstance(module, Network):
        adapter = from_linen(*parts, crop_fraction=module.crop_fraction, interpolation=module.interpolation)
        adapter.decays = module.decays
        return adapter
    if isinstance(module, nn.Module):
        return from_linen(*parts)
    if isinstance(module, nnx.Module) and len(parts) == 1:
        return from_nnx(module)
    if _is_a(module, "equinox", "Module"):
        return from_equinox(*parts)
    if _is_a(module, "keras", "Model") and len(parts) == 1:
        return from_keras(module)
    if _is_a(module, "torch.nn", "Module"):
        raise UserError(f"{where}: {_TORCH}")
    got = shown(network) if len(parts) == 1 else " and ".join(type(part).__name__ for part in parts)
    hint = ""
    if isinstance(module, type):
        hint = "; call the class"
    elif inspect.isfunction(module):
        hint = "; adapters.from_function(function, params) makes a network of a function"
    raise UserError(
        f"{where} must be a Flax Linen or NNX module, an Equinox module, a Keras model, or a network from "
        f"lfcc_jax.models.adapters, got {got}{hint}"
    )


def from_factory(
    where: str,
    name: str,
    fields: Mapping[str, Any],
    set_by_run: Mapping[str, Any] = MappingProxyType({}),
    read_by_caller: Mapping[str, Any] = MappingProxyType({}),
) -> Network | Adapter:
    """Returns the network that a user's function makes.

    The function gets the block's settings, and `num_classes`, `image_size`, `channels` and `dtype` if it takes them.
    If it takes `rngs` (an `nnx.Rngs`) or `key` (a JAX key), the run initializes the network. It returns what `adapt`
    takes.

    Args:
      where: What to call the block in error messages, for example "config.student".
      name: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`.
      fields: Settings of the block.
      set_by_run: Sizes of the data.
      read_by_caller: As for `checked_arguments`.

    Raises:
      UserError: if the function is missing, does not take a setting, raises, or returns something else.
    """
    factory = find(name, f"{where}.name")
    sizes = {
        "num_classes": set_by_run.get("num_classes", fields.get("num_classes")),
        "image_size": set_by_run.get("image_size", fields.get("image_size")),
        "channels": fields.get("image_channels", 3),
        "dtype": fields.get("dtype", "float32"),
    }
    fields = {key: value for key, value in fields.items() if key not in sizes or key in set_by_run}
    arguments = _arguments(factory, where, fields, sizes, read_by_caller)
    taken = [name for name in _KEYS if name in signature(factory)]

    def make(key: jax.Array | None = None) -> Network | Adapter:
        keys = {name: nnx.Rngs(key) if name == "rngs" else key for name in taken}
        with _one_line(f"{where}: {name}"):
            made = factory(**arguments, **keys)
        network = adapt(made, f"{where}: {name}")
        if isinstance(network, Adapter):
            network.name = name
        return network

    network = seeded(make) if taken else make()
    if isinstance(network, Network):
        return network
    return network.for_data(sizes["num_classes"], sizes["image_size"], sizes["channels"])


def check_factory(
    where: str, name: str, fields: Mapping[str, Any], read_by_caller: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Checks that a factory exists and takes its settings, without calling it; see `from_factory`."""
    sizes = dict.fromkeys(("num_classes", "image_size", "channels", "dtype"))
    _arguments(find(name, f"{where}.name"), where, fields, sizes, read_by_caller)


def find(name: str, where: str) -> Callable[..., Any]:
    """Returns the function behind `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`.

    Raises:
      UserError: if the file, the module or the function does not exist, or importing it fails.
    """
    place, _, function = name.rpartition(":")
    if place.endswith(".py") and not Path(place).expanduser().exists():
        raise UserError(f"{where}: there is no file {place}")
    with _one_line(f"{where}: {place}"):
        module = _file(place) if place.endswith(".py") else importlib.import_module(place)
    if not callable(found := getattr(module, function, None)):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise unknown("function", function, functions, f"{where}={place}:...")
    return found


def full_factory_name(name: str) -> str:
    """Returns the name with the absolute path of its file, if it names one."""
    place, _, function = name.rpartition(":")
    return f"{Path(place).expanduser().resolve()}:{function}" if place.endswith(".py") else name


def _arguments(
    factory: Callable[..., Any],
    where: str,
    fields: Mapping[str, Any],
    sizes: Mapping[str, Any],
    read_by_caller: Mapping[str, Any],
) -> dict[str, Any]:
    takes = signature(factory)
    set_by_run = {key: value for key, value in sizes.items() if key in takes}
    keys = {key: None for key in _KEYS if key in takes}
    fields = {key: value for key, value in fields.items() if key not in ("image_channels", "dtype")}
    arguments = checked_arguments(factory, fields, where, set_by_run | keys, read_by_caller)
    return {key: value for key, value in arguments.items() if key not in keys}


def _file(place: str) -> ModuleType:
    """Returns the module of a Python file, which is executed once. It may import its neighbors."""
    path = Path(place).expanduser().resolve()
    name = f"lfcc_jax_networks_in_{path}"
    if name not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        module = sys.modules[name] = ModuleType(name)  # dataclasses look it up there
        module.__file__ = str(path)
        try:
            SourceFileLoader(name, str(path)).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextlib.contextmanager
def _one_line(prefix: str) -> Iterator[None]:
    """Turns whatever the user's code raises into one line with its place."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise user_code_error(prefix, error) from error


def user_code_error(prefix: str, error: BaseException) -> UserError:
    """Returns the one-line error for what a user's code raised, with the place of its last line outside libraries."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    text = str(error).splitlines()[0] if str(error) else ""
    hint = ""
    if isinstance(error, jax.errors.JAXTypeError) or "Tracer" in str(error):
        hint = "; the network must consist of JAX operations, so that it can be compiled"
    elif isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
        hint = "; for Keras, set KERAS_BACKEND=jax before it is imported"
    elif "argument: 'state'" in text:
        hint = "; give the module with its state: adapters.from_equinox(module, state)"
    return UserError(f"{prefix} raised {type(error).__name__}: {text}{place}{hint}")


@functools.cache
def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith("<") or str(Path(__file__).parents[2]) in filename


def _is_a(value: Any, module: str, name: str) -> bool:
    """Returns whether a value is an instance of a class of a library that need not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
