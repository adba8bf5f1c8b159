"""How good features are without training the network further: k nearest neighbors, and a linear classifier."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lfcc_jax import data
from lfcc_jax.arguments import Between, NonNegative, checked_arguments
from lfcc_jax.data import Inputs
from lfcc_jax.errors import UserError
from lfcc_jax.models import Adapter, Network
from lfcc_jax.training.sharding import replicated, to_global

# As in the evaluation of DINO (Caron et al., 2021).
_TEMPERATURE = 0.07
# Inverse strengths of the penalty, of which the best on held-out training images is used.
_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_HELD_OUT = 5  # every fifth image, if there are so many


class Probe:
    """Classifies labeled images by the pooled features of a network: one labeled set trains, another tests.

    ============ ====================================================================================================
    `knn`        accuracy of a vote of the nearest training images by cosine similarity, weighted by exp(similarity /
                 0.07)
    `linear`     accuracy of logistic regression on standardized features; its penalty is chosen on every fifth
                 training image
    ============ ====================================================================================================

    Args:
      inputs: The labeled images, both splits.
      batch_size: Global batch size.
      neighbors: Number of images that vote.
      view: `crop_fraction` and `interpolation` of the student.
      mesh: Devices that batches are split over.
    """

    def __init__(self, inputs: Inputs, batch_size: int, neighbors: int, view: dict[str, Any], mesh: Mesh):
        self._neighbors, self._mesh = neighbors, mesh
        self._prepare = inputs.prepare_test(**view)
        self._train = inputs._replace(test=inputs.train).test_batches(batch_size, **view)
        self._test = inputs.test_batches(batch_size, **view)

    def __call__(self, network: Network | Adapter, variables: Any) -> dict[str, float]:
        """Returns `knn` and `linear` of a network."""

        @jax.jit
        def pooled(variables: Any, images: jax.Array) -> jax.Array:
            features = network.apply(variables, self._prepare(images), train=False).features["pooled"]
            return jax.lax.with_sharding_constraint(features.astype("float32"), replicated(self._mesh))

        (x, y), (test_x, test_y) = (self._read(batches, pooled, variables) for batches in (self._train, self._test))
        return {
            "knn": float(np.mean(nearest_neighbors(x, y, test_x, self._neighbors) == test_y)),
            "linear": float(np.mean(linear(x, y, test_x) == test_y)),
        }

    def _read(
        self, batches: Callable[[], Iterable[Any]], pooled: Callable[..., jax.Array], variables: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for batch in batches():
            mask = multihost_utils.process_allgather(batch["mask"], tiled=True)
            label = multihost_utils.process_allgather(batch["label"], tiled=True)
            features.append(np.asarray(pooled(variables, to_global(batch, self._mesh)["image"]))[mask])
            labels.append(label[mask])
        return np.concatenate(features), np.concatenate(labels)


def nearest_neighbors(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, neighbors: int) -> np.ndarray:
    """Returns the classes that the nearest images vote for; see `Probe`.

    Args:
      x: Features of the training images, `[train, channels]`.
      y: Their labels, `[train]`.
      test_x: Features of the test images, `[test, channels]`.
      neighbors: Number of images that vote; all if there are fewer.

    Returns:
      `[test]`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(
        min(neighbors, len(x)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp(-distances / _TEMPERATURE),
    )
    return model.fit(x, y).predict(test_x)


def linear(x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Returns the classes that logistic regression predicts; see `Probe`.

    Args:
      x: Features of the training images, `[train, channels]`.
      y: Their labels, `[train]`, of at least two classes.
      test_x: Features of the test images, `[test, channels]`.

    Returns:
      `[test]`.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test_x = (x - mean) / std, (test_x - mean) / std

    def fit(strength: float, rows: np.ndarray | slice) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(x[rows], y[rows])

    held_out = np.arange(len(x)) % _HELD_OUT == _HELD_OUT - 1
    best = _STRENGTHS[-1]
    if len(set(y[~held_out].tolist())) > 1 and held_out.any():
        best = max(_STRENGTHS, key=lambda strength: fit(strength, ~held_out).score(x[held_out], y[held_out]))
    return fit(best, slice(None)).predict(test_x)


def open_probe(
    name: str,
    train_split: str = "train",
    test_split: str = "test",
    test_name: str = "",
    data_dir: str = "",
    neighbors: Annotated[int, Between(1, 1000)] = 20,
    every_epochs: Annotated[float, NonNegative] = 0.0,
    *,
    inputs: Inputs,
) -> Inputs:
    """Returns the labeled images of a probe, of the same size as those of the run.

    Args:
      name: As in `data.open_inputs`.
      train_split: Split with the images that the neighbors and the classifier come from.
      test_split: Split that they are tested on.
      test_name: As in `data.open_inputs`.
      data_dir: As in `data.open_inputs`.
      neighbors: Number of nearest neighbors that vote.
      every_epochs: Number of epochs between probes; 0 probes at the end only.
      inputs: Images of the run.

    Raises:
      UserError: as in `data.open_inputs`; if the images have no labels, or not the size or channels of the run's.
    """
    checked_arguments(open_probe, locals(), "config.probe")
    size = 0 if inputs.train.image_size == inputs.image_size and not inputs.resized else inputs.image_size
    opened = data.open_inputs(name, train_split, test_split, test_name, data_dir, image_size=size)
    if not opened.train.num_classes:
        raise UserError(f"config.probe.name must be a data set with labels, got '{name}'")
    if (opened.image_size, opened.train.image_channels) != (inputs.image_size, inputs.train.image_channels):
        raise UserError(
            f"config.probe.name must have images of {inputs.image_size} pixels and {inputs.train.image_channels} "
            f"channels, as config.data.name, got {opened.image_size} and {opened.train.image_channels}"
        )
    return opened._replace(workers=inputs.workers)
