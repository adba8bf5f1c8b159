"""What every network of the zoo shares: its calling convention, its normalization, and what is known before it runs."""

from typing import Annotated, Any, Literal, NamedTuple

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


class FeatureInfo(NamedTuple):
    """The size of one feature: `height` and `width` in cells, `channels`. A vector is 1 x 1."""

    height: int
    width: int
    channels: int


class Output(NamedTuple):
    """What a network returns.

    Attributes:
      logits: `[batch, classes]`, float32.
      features: `stage1` .. `stage4` as maps `[batch, height, width, channels]` (tokens put back on their grid, class
        token dropped) and `pooled` as `[batch, channels]`, the vector that the classifier reads.
    """

    logits: Float[Array, "batch classes"]
    features: dict[str, Array]


# Fields that several families have, with their bounds.
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
    """Base of all networks: `logits, features = model.apply(variables, images, train=False)`.

    Images are NHWC floats in [0, 1]; each network normalizes them itself, because teacher and student were usually
    trained with different constants.

    Attributes:
      num_classes: width of the classifier.
      image_size: height and width of the images it is built for, in pixels.
      image_channels: 3 for color, 1 for gray.
      mean: subtracted from the image; one number, or one a channel.
      std: what the image is then divided by; likewise.
      crop: share of the resized image, along each side, that is kept when the network is evaluated.
      interpolation: with which that image is resized, `bilinear` or `bicubic`.
      dtype: Dtype of the computation, but for the classifier's. Parameters, statistics and logits stay float32.
      dropout: Dropout rate of the pooled vector; some families drop inside their blocks, too.
      remat: computes the inside of each block again in the backward pass instead of storing it.
      scan: compiles equal blocks as one loop, which changes no parameter and no result; not where BatchNorm is.
    """

    num_classes: Annotated[int, Between(1, 10**7)]
    image_size: Annotated[int, Between(1, 8192)]
    image_channels: Annotated[int, Between(1, 1024)] = 3
    mean: Annotated[tuple[Annotated[float, Fraction], ...], Nonempty] = (0.5,)
    std: Annotated[tuple[Annotated[float, Positive], ...], Nonempty] = (0.5,)
    crop: Annotated[float, Positive, AtMost(1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    dtype: Annotated[Any, Bound("'float32', 'bfloat16' or 'float64'", _is_dtype)] = jnp.float32
    dropout: Dropout = 0.0
    remat: bool = False
    scan: bool = False

    def normalize(self, images: Float[Array, "batch height width channels"]) -> Array:
        """Returns `(images - mean) / std` in the compute dtype. The arithmetic is float32.

        Raises:
          UserError: if images are no such floats, or there are neither one constant nor as many as channels.
        """
        channels = images.shape[-1]
        if images.ndim != 4 or channels != self.image_channels:
            raise UserError(
                f"images are [batch, height, width, {self.image_channels}] here; got shape {list(images.shape)}"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images are floats in [0, 1]; got {images.dtype}, to be divided by 255 perhaps")
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise UserError(
                f"images of {channels} channels need a mean and a std of {channels} numbers or one; "
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
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the pooled vectors, after dropout, from a layer called `head`.

        It computes in float32 (or wider) whatever `dtype` is: rounded to bfloat16, some of 1000 logits are equal.
        """
        x = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
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
        """Returns shapes and dtypes of all variables, computing nothing."""
        images = jax.ShapeDtypeStruct(self.image_shape(), jnp.float32)
        return jax.eval_shape(self.init, jax.random.key(0), images)

    def feature_info(self, image_size: int | None = None) -> dict[str, FeatureInfo]:
        """Returns the size of every feature for images of `image_size` pixels, computing nothing."""
        images = jax.ShapeDtypeStruct(self.image_shape(image_size), jnp.float32)
        _, features = jax.eval_shape(lambda x: self.init_with_output(jax.random.key(0), x)[0], images)
        return {name: FeatureInfo(*((1, 1, *f.shape)[-3:])) for name, f in features.items()}


# The constants that most ImageNet networks normalize with.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
