"""What every network of the zoo shares: its calling convention, its normalisation, and what is known before it runs."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


class Network(nn.Module):
    """Base of all networks: `logits, features = model.apply(variables, images, train=False)`.

    Images are NHWC floats in [0, 1]; each network normalises them itself, because teacher and student were usually
    trained with different constants.

    Attributes:
      num_classes: width of the classifier.
      image_size: height and width of the images it is built for, in pixels.
      image_channels: 3 for colour, 1 for grey.
      mean: subtracted from the image; one number, or one a channel.
      std: what the image is then divided by; likewise.
      dtype: of the computation. Parameters, statistics and logits stay float32.
    """

    num_classes: int
    image_size: int
    image_channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = jnp.float32

    def normalise(self, images: Float[Array, "batch height width channels"]) -> Array:
        """Returns `(images - mean) / std` in the compute dtype. The arithmetic is float32."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)

    def image_shape(self, image_size: int | None = None) -> tuple[int, int, int, int]:
        """Returns the shape of a batch of one image."""
        size = image_size or self.image_size
        return (1, size, size, self.image_channels)

    def variable_shapes(self) -> dict[str, Any]:
        """Returns shapes and dtypes of all variables, computing nothing."""
        images = jnp.zeros(self.image_shape(), jnp.float32)
        return jax.eval_shape(lambda key: self.init(key, images), jax.random.key(0))

    def feature_info(self, image_size: int | None = None) -> dict[str, FeatureInfo]:
        """Returns the size of every feature for images of `image_size` pixels, computing nothing."""
        images = jax.ShapeDtypeStruct(self.image_shape(image_size), jnp.float32)
        _, features = jax.eval_shape(lambda x: self.init_with_output(jax.random.key(0), x)[0], images)
        return {name: FeatureInfo(*((1, 1, *f.shape)[-3:])) for name, f in features.items()}


def tokens_to_map(tokens: Float[Array, "batch tokens channels"]) -> Float[Array, "batch height width channels"]:
    """Puts the tokens of a square grid back on it."""
    batch, count, channels = tokens.shape
    size = round(count**0.5)
    return tokens.reshape(batch, size, size, channels)


def even_taps(depth: int) -> tuple[int, ...]:
    """Returns after which of `depth` equal blocks the four stages end: evenly spaced, the last after the last block."""
    return tuple(-(-depth * i // 4) for i in (1, 2, 3, 4))


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of an example with probability `rate`, and rescales what is kept.

    Reference: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns `x` with some examples' branches zeroed if `train`, else `x` itself."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between: `width -> hidden -> width`, along the last axis."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns an array of the shape of `x`."""
        width = x.shape[-1]
        x = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x), approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(width, dtype=self.dtype, name="fc2")(x)
