"""The base class of adapters: a network of another library, with the interface of `Network` that training uses."""

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lfcc_jax.digest import digests
from lfcc_jax.errors import UserError, shown, unknown
from lfcc_jax.models.network import FeatureInfo, Network, Output

Variables = dict[str, Any]


class Adapter:
    """A network of another library, as teacher or student.

    Like a `Network`, it maps NHWC images in [0, 1] to an `Output`, and keeps its arrays in a dict: `params` are
    trained, the other collections are updated by the forward pass (BatchNorm's statistics, for example).

    The network may return logits, `(logits, features)`, a dict of features that may contain `logits`, or an `Output`.
    Features are maps `[batch, height, width, channels]`, tokens `[batch, tokens, channels]`, which are put on a square
    grid, or vectors `[batch, channels]`. Methods look for maps called `stage1` to `stage4`, unless their `stages` name
    others, and for a vector called `pooled`, the input of the classifier. With `train=False`, a network must treat each
    image on its own: on TPUs, it gets a few at a time.

    A subclass runs the network in `run`.

    Args:
      name: Name of the network in messages.
      weights: The variables that the network came with; None if it is initialized from a key.
      features: Names of the network's features by the names that they get here, for example
        `{"stage1": "blocks/2", "pooled": "norm"}`; all features under their own names if None.
      logits: Whether the network classifies. If not, its logits are ignored, and an array that it returns alone is a
        feature: `pooled` if it is a vector, else `map`.
      prefix_tokens: Number of tokens before those of the patches: class token and registers.
      channels_first: Whether the network has channels before height and width, in images and maps.
      mean: Subtracted from the images; one number, or one per channel.
      std: Divides the images after that; one number, or one per channel.
      input_size: Height and width that images are resized to, in pixels; not resized if None.
      crop_fraction: As in `Network`.
      interpolation: As in `Network`.
    """

    # Number of classes, and size of the images; see `for_data`.
    num_classes: int = 0
    image_size: int = 0
    image_channels: int = 3
    # Returns random variables, for networks that come without weights.
    _create: Callable[[jax.Array, jax.Array], Variables] | None = None

    def __init__(
        self,
        name: str,
        weights: Variables | None,
        *,
        features: Mapping[str, str] | None = None,
        logits: bool = True,
        prefix_tokens: int = 0,
        channels_first: bool = False,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        input_size: int | None = None,
        crop_fraction: float = 1.0,
        interpolation: str = "bicubic",
    ):
        self.name, self.weights, self.has_logits = name, weights, logits
        self.features = None if features is None else dict(features)
        self.prefix_tokens, self.channels_first = prefix_tokens, channels_first
        self.mean, self.std = (tuple(np.ravel(x).tolist()) for x in (mean, std))
        self.input_size = input_size
        self.crop_fraction, self.interpolation = crop_fraction, interpolation
        if prefix_tokens < 0:
            raise UserError(f"network '{name}': prefix_tokens must be at least 0, got {shown(prefix_tokens)}")
        if any(s <= 0 for s in self.std):
            raise UserError(f"network '{name}': std must be positive, got {shown(self.std)}")
        if interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"network '{name}': interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")

    def run(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array], Variables]:
        """Runs the network.

        Args:
          variables: As in `weights`.
          images: `[batch, height, width, channels]`, normalized, or `[batch, channels, height, width]`.
          train: Whether BatchNorm uses the batch, and dropout is on.
          key: Key of dropout.

        Returns:
          What the network returned, features that it did not return but stored, and the updated collections.
        """
        raise NotImplementedError

    def for_data(self, num_classes: int, image_size: int, channels: int) -> "Adapter":
        """Returns the network with the sizes of a data set."""
        network = copy.copy(self)
        network.num_classes, network.image_size, network.image_channels = num_classes, image_size, channels
        return network

    def without_logits(self) -> "Adapter":
        """Returns the network as one that does not classify."""
        network = copy.copy(self)
        network.num_classes, network.has_logits = 0, False
        return network

    def created_by(self, create: Callable[[jax.Array, jax.Array], Variables]) -> "Adapter":
        """Returns the network without weights. `create` returns random ones, from a key and a batch of images."""
        network = copy.copy(self)
        network.weights, network._create = None, create
        return network

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Returns the weights that the network came with, or else random ones."""
        return self.weights if self._create is None else self._create(key, images)

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        train: bool = False,
        *,
        mutable: Sequence[str] | bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Returns an `Output`, as `Network.apply`, and the collections in `mutable` unless that is False.

        Raises:
          UserError: if the images do not fit, or the network returns something else than the class describes.
        """
        key = jax.random.key(0) if rngs is None else rngs["dropout"]
        outputs, stored, collections = self.run(variables, self._prepared(images), train, key)
        output = self._output(outputs, stored)
        return output if mutable is False else (output, {name: collections[name] for name in mutable})

    @staticmethod
    def decays(name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay; see `Network.decays`."""
        return Network.decays(name, leaf)

    def image_shape(self, image_size: int | None = None) -> tuple[int, int, int, int]:
        """Returns the shape of a batch of one image."""
        size = image_size or self.image_size
        return (1, size, size, self.image_channels)

    def variable_shapes(self) -> Variables:
        """Returns shapes and dtypes of all variables, without computing them."""
        images = jax.ShapeDtypeStruct(self.image_shape(), jnp.float32)
        return jax.eval_shape(self.init, jax.random.key(0), images)

    def identity(self) -> dict[str, str]:
        """Returns what tells this network from another one of the same name: a digest of its weights, or shapes."""
        leaves = named_arrays(self.variable_shapes())
        described = [f"{path} {leaf.shape} {leaf.dtype}" for path, leaf in leaves.items()]
        described += [] if self.weights is None else sorted(f"{k} {v}" for k, v in digests(self.weights).items())
        return {"name": self.name, "digest": hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]}

    def output_shapes(self, image_size: int | None = None) -> Output:
        """Returns shapes and dtypes of what `apply` returns for one image, without computing it."""
        images = jax.ShapeDtypeStruct(self.image_shape(image_size), jnp.float32)
        return jax.eval_shape(self.apply, self.variable_shapes(), images)

    def feature_info(self, image_size: int | None = None) -> dict[str, FeatureInfo]:
        """Returns the size of every feature for images of `image_size` pixels, without computing them."""
        features = self.output_shapes(image_size).features
        return {name: FeatureInfo(*((1, 1, *f.shape)[-3:])) for name, f in features.items()}

    def _prepared(self, images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise UserError(
                f"network '{self.name}': mean and std must have one number or one per channel, of which there are "
                f"{channels}, got mean={self.mean} and std={self.std}"
            )
        if self.input_size is not None and images.shape[1:3] != (self.input_size,) * 2:
            shape = (images.shape[0], self.input_size, self.input_size, channels)
            images = jax.image.resize(images, shape, "linear")
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.mean, self.std))
        images = (images - mean) / std
        return jnp.moveaxis(images, -1, 1) if self.channels_first else images

    def _output(self, outputs: Any, stored: Mapping[str, jax.Array]) -> Output:
        if isinstance(outputs, Mapping):
            logits, features = outputs.get("logits"), {k: v for k, v in outputs.items() if k != "logits"}
        elif isinstance(outputs, (tuple, list)) and len(outputs) == 2 and isinstance(outputs[1], Mapping):
            logits, features = outputs
        elif hasattr(outputs, "shape") and not self.has_logits:
            logits, features = None, {"pooled" if outputs.ndim == 2 else "map": outputs}
        elif hasattr(outputs, "shape"):
            logits, features = outputs, {}
        else:
            raise UserError(
                f"network '{self.name}' must return logits, (logits, features), or a dict of features that may contain "
                f"'logits', got {shown(jax.tree.map(lambda x: getattr(x, 'shape', x), outputs))}"
            )
        if not self.has_logits:
            logits = None
        found = dict(stored) | {"/".join(map(str, path)): x for path, x in flatten_dict(dict(features)).items()}
        if self.features is not None:
            for name in self.features.values():
                if name not in found:
                    raise unknown("feature", name, found, f"network '{self.name}'")
            found = {name: found[theirs] for name, theirs in self.features.items()}
        if logits is not None:
            if not hasattr(logits, "shape") or logits.ndim != 2:
                raise UserError(
                    f"network '{self.name}': logits must have shape [batch, classes], got "
                    f"{list(getattr(logits, 'shape', ())) or shown(logits)}; set logits=False if it does not classify"
                )
            logits = logits.astype(jnp.float32)
        return Output(logits, {name: self._feature(name, x) for name, x in found.items()})

    def _feature(self, name: str, x: Any) -> jax.Array:
        if not hasattr(x, "shape") or x.ndim not in (2, 3, 4):
            got = list(getattr(x, "shape", ())) or shown(x)
            raise UserError(
                f"network '{self.name}': feature '{name}' must be a map [batch, height, width, channels], tokens "
                f"[batch, tokens, channels] or a vector [batch, channels], got {got}"
            )
        if x.ndim == 4 and self.channels_first:
            return jnp.moveaxis(x, 1, -1)
        if x.ndim == 3:
            side = math.isqrt(max(x.shape[1] - self.prefix_tokens, 0))
            if side == 0 or side**2 != x.shape[1] - self.prefix_tokens:
                raise UserError(
                    f"network '{self.name}': feature '{name}' has {x.shape[1]} tokens, which with "
                    f"prefix_tokens={self.prefix_tokens} leaves {x.shape[1] - self.prefix_tokens}, not a square grid; "
                    "set prefix_tokens to the number of tokens before those of the patches"
                )
            return x[:, self.prefix_tokens :].reshape(x.shape[0], side, side, x.shape[-1])
        return x


def seeded(make: Callable[[jax.Array], Adapter | Network]) -> Adapter | Network:
    """Returns the network that `make` returns, to be initialized from a key.

    Args:
      make: Returns a network with random weights from a key. It is traced, not executed, until weights are needed.
    """
    made: list[Adapter | Network] = []

    def trace(key: jax.Array) -> tuple[()]:
        made.append(make(key))
        return ()

    # What the trace leaves behind is a network with useless weights, and everything else in place.
    jax.eval_shape(trace, jax.random.key(0))
    if isinstance(made[0], Network):
        return made[0]
    return made[0].created_by(lambda key, images: make(key).init(key, images))


def named_arrays(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their paths, as in "layers/0/weight", in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in leaves}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays by path as nested dicts."""
    return unflatten_dict({tuple(name.split("/")): x for name, x in arrays.items()})


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as arrays by path."""
    return flatten_dict(dict(variables), sep="/")


def mode(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """Returns a function from `train` to the keyword arguments that set the mode of a network's call.

    These are `train`, `training`, `is_training`, `deterministic` or `inference`, if it takes them.
    """
    takes = inspect.signature(call).parameters

    def arguments(train: bool) -> dict[str, bool]:
        modes = dict.fromkeys(("train", "training", "is_training"), train)
        modes |= dict.fromkeys(("deterministic", "inference"), not train)
        return {name: value for name, value in modes.items() if name in takes}

    return arguments
