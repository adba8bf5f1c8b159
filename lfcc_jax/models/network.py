"""The base class of all networks: calling convention, normalization, classifier, and sizes known before it runs."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lfcc_jax.arguments import (
    AtMost,
    Between,
    Bound,
    Fraction,
    HalfOpenFraction,
    Nonempty,
    NonNegative,
    Positive,
)
from lfcc_jax.errors import UserError
from lfcc_jax.precision import wide_dtype


class FeatureInfo(NamedTuple):
    """The size of one feature: `height` and `width` in cells, `channels`. A vector is 1 x 1."""

    height: int
    width: int
    channels: int


class Output(NamedTuple):
    """What a network returns.

    Attributes:
      logits: `[batch, classes]`, float32; None if the network has no classifier.
      features: Feature maps `stage1` to `stage4`, `[batch, height, width, channels]` (tokens on their grid, without the
        class token), and `pooled`, `[batch, channels]`, the input of the classifier.
    """

    logits: Float[Array, "batch classes"] | None
    features: dict[str, Array]


# Types of fields that several families share, with their bounds.
Width = Annotated[int, Between(1, 16384)]
Depth = Annotated[int, Between(1, 512)]
Heads = Annotated[int, Between(1, 512)]
Patch = Annotated[int, Between(1, 256)]
Ratio = Annotated[float, Between(0.01, 64)]
Dropout = Annotated[float, HalfOpenFraction]
InitialScale = Annotated[float, NonNegative]


def _is_dtype(value: Any) -> bool:
    try:
        return jnp.dtype(value).name in ("float32", "bfloat16", "float64")
    except TypeError:
        return False


class Network(nn.Module):
    """Base class of all networks: `logits, features = model.apply(variables, images, train=False)`.

    Images are NHWC floats in [0, 1]. Each network normalizes them itself, because teacher and student are usually
    trained with different constants.

    The classifier is a linear layer called `head`, applied to `features["pooled"]`; `classify` creates it. Methods read
    a teacher's classifier from `variables["params"]["head"]`, and `lfcc_jax.convert` replaces it.

    A family overrides the class attributes below and `decays`, so that no other module has to know its fields or the
    names of its parameters.

    Attributes:
      num_classes: Number of classes; 0 leaves the classifier out, and the logits are None.
      image_size: Height and width of the images, in pixels.
      image_channels: 3 for color, 1 for grayscale.
      mean: Subtracted from the images; one number, or one per channel.
      std: Divides the images after that; one number, or one per channel.
      crop_fraction: Fraction of each side of the resized image that is kept in evaluation (timm's `crop_pct`).
      interpolation: How images are resized in evaluation, `bilinear` or `bicubic`.
      dtype: Dtype of the computation, except for the classifier's. Parameters, statistics and logits are float32.
      dropout: Dropout rate of the pooled vector, and inside the blocks of some families.
      remat: Whether to recompute the inside of each block in the backward pass instead of storing it.
      scan: Whether to compile equal blocks as one loop, with the same parameters and results. No effect on networks
        with BatchNorm.
      family: What the network is made of. Recipes depend on it.
      free_fields: Fields that may differ from those of a saved network whose variables are loaded: they matter only in
        initialization, in training, or to the images.
    """

    num_classes: Annotated[int, Between(0, 10**7)]
    image_size: Annotated[int, Between(1, 8192)]
    image_channels: Annotated[int, Between(1, 1024)] = 3
    mean: Annotated[tuple[Annotated[float, Fraction], ...], Nonempty] = (0.5,)
    std: Annotated[tuple[Annotated[float, Positive], ...], Nonempty] = (0.5,)
    crop_fraction: Annotated[float, Positive, AtMost(1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    dtype: Annotated[Any, Bound("'float32', 'bfloat16' or 'float64'", _is_dtype)] = jnp.float32
    dropout: Dropout = 0.0
    remat: bool = False
    scan: bool = False

    family: ClassVar[Literal["cnn", "transformer", "mlp"]]
    free_fields: ClassVar[frozenset[str]] = frozenset(
        ("crop_fraction", "interpolation", "dtype", "dropout", "remat", "scan")
    )

    @classmethod
    def decays(cls, name: str, leaf: Any) -> bool:
        """Returns whether a parameter has weight decay: kernels do; biases, scales and other vectors do not.

        Args:
          name: The last part of the parameter's path, such as `kernel`.
          leaf: The parameter, or its shape.
        """
        # Stacked blocks add a leading axis, so `ndim` alone does not identify biases and scales.
        return leaf.ndim > 1 and name not in ("bias", "scale")

    def normalize(self, images: Float[Array, "batch height width channels"]) -> Array:
        """Returns `(images - mean) / std` in the compute dtype. The arithmetic is float32.

        Raises:
          UserError: if images are not floats of the expected shape, or `mean` or `std` has neither one number nor one
            per channel.
        """
        channels = images.shape[-1]
        if images.ndim != 4 or channels != self.image_channels:
            raise UserError(
                f"images must have shape [batch, height, width, {self.image_channels}], got {list(images.shape)}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255?")
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise UserError(
                f"mean and std must have one number or one per channel, of which there are {channels}, "
                f"got mean={self.mean} and std={self.std}"
            )
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)

    def classify(
        self,
        pooled: Float[Array, "batch channels"],
        train: bool,
        kernel_init: Any,
        bias_init: Any = nn.initializers.zeros,
    ) -> Float[Array, "batch classes"] | None:
        """Returns the logits of the pooled vectors, after dropout, from a layer called `head`; None without classes.

        The layer computes in float32 or wider, whatever `dtype` is: in bfloat16, some of 1000 logits would be equal.
        """
        if not self.num_classes:
            return None
        x = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        dtype = wide_dtype(self.dtype)
        head = nn.Dense(
            self.num_classes,
            dtype=dtype,
            precision="highest",
            kernel_init=kernel_init,
            bias_init=bias_init,
            name="head",
        )
        return head(x).astype(jnp.float32)

    def image_shape(self, image_size: int | None = None) -> tuple[int, int, int, int]:
        """Returns the shape of a batch of one image."""
        size = image_size or self.image_size
        return (1, size, size, self.image_channels)

    def variable_shapes(self) -> dict[str, Any]:
        """Returns shapes and dtypes of all variables, without computing them."""
        return jax.tree.map(lambda shape: shape, self._shapes(self.image_size)[0])

    def output_shapes(self, image_size: int | None = None) -> Output:
        """Returns shapes and dtypes of what the network returns for one image of `image_size` pixels."""
        return jax.tree.map(lambda shape: shape, self._shapes(image_size or self.image_size)[1])

    def _shapes(self, image_size: int) -> tuple[dict[str, Any], Output]:
        try:
            hash(self)
        except TypeError:  # a field is a list
            return _traced_shapes.__wrapped__(self, image_size)
        return _traced_shapes(self, image_size)

    def feature_info(self, image_size: int | None = None) -> dict[str, FeatureInfo]:
        """Returns the size of every feature for images of `image_size` pixels, without computing them."""
        features = self.output_shapes(image_size).features
        return {name: FeatureInfo(*((1, 1, *f.shape)[-3:])) for name, f in features.items()}


@functools.lru_cache(maxsize=32)
def _traced_shapes(network: Network, image_size: int) -> tuple[dict[str, Any], Output]:
    """Returns shapes and dtypes of variables and output. Cached, because tracing a network takes seconds."""
    images = jax.ShapeDtypeStruct(network.image_shape(image_size), jnp.float32)
    output, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return variables, output


class Variant(NamedTuple):
    """A named network.

    Attributes:
      network: Its class.
      fields: Values of fields that differ from the class's defaults.
      in_timm: Whether timm has a network of this name.
      small: Values of fields that shrink it for smoke runs on a CPU, or None.
    """

    network: type[Network]
    fields: Mapping[str, Any] = MappingProxyType({})
    in_timm: bool = False
    small: Mapping[str, Any] | None = None


# Normalization constants of most ImageNet networks.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
