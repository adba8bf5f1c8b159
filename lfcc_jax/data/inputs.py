"""Training and test images of a run: the `data` block of a config."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import grain
import jax

from lfcc_jax.arguments import Between, checked_arguments
from lfcc_jax.data import augmentation as augmentations
from lfcc_jax.data import device_crop
from lfcc_jax.data.examples import Example
from lfcc_jax.data.files import Files
from lfcc_jax.data.fingerprint import fingerprint
from lfcc_jax.data.in_memory import fits_in_memory, in_memory
from lfcc_jax.data.open import open_source, open_sources
from lfcc_jax.data.pipeline import Batches, eval_batches, steps_per_epoch, train_batches, train_indices
from lfcc_jax.data.source import Source
from lfcc_jax.errors import UserError, shown


class Images(NamedTuple):
    """What networks and losses need to know about the images.

    Attributes:
      num_classes: Number of classes; 0 without labels.
      size: Height and width of the networks' input, in pixels.
      channels: 3 for color, 1 for grayscale.
      count: Number of training images.
      class_names: Name of each class; empty if they have none.
    """

    num_classes: int
    size: int
    channels: int
    count: int
    class_names: tuple[str, ...] = ()


class Inputs(NamedTuple):
    """Training and test images, and how they are read and augmented.

    Attributes:
      train: Source of the training images.
      test: Source of the test images.
      image_size: Height and width of the networks' input, in pixels.
      resized: Whether images of one size are cropped and resized on the device, because `image_size` is given.
      augmentation: Augmentation of training images on the device.
      workers: Number of processes that read and decode.
      resident: Whether all images are read in advance, the training images into device memory.
    """

    train: Source
    test: Source
    image_size: int
    resized: bool
    augmentation: augmentations.Augmentation
    workers: int
    resident: bool

    @property
    def images(self) -> Images:
        """What networks and losses need to know about the images."""
        train = self.train
        count = len(train.examples)
        return Images(train.num_classes, self.image_size, train.image_channels, count, train.class_names)

    @property
    def host_shape(self) -> tuple[int, int, int]:
        """The shape of a training image on the host."""
        size = self.train.image_size or self.image_size
        return size, size, self.train.image_channels

    def fingerprints(self) -> dict[str, Any]:
        """Returns the fingerprints of both sources, as JSON."""
        return {"train": fingerprint(self.train), "test": fingerprint(self.test)}

    def load(self, log: Callable[[str], None] = lambda line: None) -> "Inputs":
        """Returns the same inputs with small images of one size in memory.

        These are checked before training. All others (images that vary in size, splits of more than 1 GiB, and images
        read by worker processes) are checked when they are read.

        Args:
          log: Called with a line before images are read.

        Raises:
          UserError: for the first example that `examples.read` rejects.
        """
        if self.workers and not self.resident:  # processes share no memory
            return self
        fits = [self.resident or fits_in_memory(source) for source in (self.train, self.test)]
        if count := sum(len(s.examples) for s, keep in zip((self.train, self.test), fits, strict=True) if keep):
            log(f"reading {count:,} images into memory ...")
        train, test = (in_memory(s) if keep else s for s, keep in zip((self.train, self.test), fits, strict=True))
        return self._replace(train=train, test=test)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of full global batches of training images."""
        return steps_per_epoch(self.train, batch_size)

    def train_batches(self, batch_size: int, seed: int) -> Batches:
        """Returns an iterator over training batches; see `pipeline.train_batches`."""
        scale = self.augmentation.scale
        crops = {"image_size": self.image_size, "scale": scale, "workers": self.workers}
        return train_batches(self.train, batch_size, seed=seed, **crops)

    def train_indices(self, batch_size: int, seed: int) -> grain.DatasetIterator:
        """Returns an iterator over the indices of training batches; see `pipeline.train_indices`."""
        return train_indices(self.train, batch_size, seed=seed)

    def test_batches(
        self, batch_size: int, crop_fraction: float, interpolation: str
    ) -> Callable[[], Iterable[Example]]:
        """Returns a function that returns the test batches; see `pipeline.eval_batches`.

        Args:
          batch_size: Global batch size.
          crop_fraction: The student's; used for images that vary in size.
          interpolation: The student's; used for images that vary in size.
        """

        def read() -> Iterator[Example]:
            crop = {"crop": crop_fraction, "interpolation": interpolation, "image_size": self.image_size}
            return eval_batches(self.test, batch_size, workers=self.workers, **crop)

        return functools.partial(iter, list(read())) if self.resident else read

    def prepare_test(self, crop_fraction: float, interpolation: str) -> Callable[[jax.Array], jax.Array]:
        """Returns the transform of test images on the device, from uint8 to floats in [0, 1], with a resize if needed.

        Args:
          crop_fraction: The student's; used for images of one size.
          interpolation: The student's; used for images of one size.
        """
        if not self.resized:
            return device_crop.to_float
        return functools.partial(
            device_crop.central_crop, size=self.image_size, crop=crop_fraction, interpolation=interpolation
        )


def open_inputs(
    name: str,
    train_split: str = "train",
    test_split: str = "test",
    test_name: str = "",
    data_dir: str = "",
    labels: bool = True,
    skip_unreadable: bool = False,
    image_size: Annotated[int, Between(0, 8192)] = 0,
    augmentation: Mapping[str, Any] | None = None,
    workers: Annotated[int, Between(0, 256)] = 0,
    resident: bool = False,
) -> Inputs:
    """Returns training and test images.

    Args:
      name: As in `open_source`.
      train_split: Training split, in TFDS's notation.
      test_split: Test split.
      test_name: Name of the data set with the test split, if it is another.
      data_dir: As in `open_source`.
      labels: Whether to use the labels of the images, if there are any. Without, losses that need labels are refused.
      skip_unreadable: As in `open_source`.
      image_size: Side of the networks' input, in pixels. Training images are random crops resized to it, even if it is
        the images' own size; test images are resized and cropped with the student's settings. 0 keeps images
        unchanged.
      augmentation: Keyword arguments of `lfcc_jax.data.augmentation.create`, except `num_classes` and `size`.
      workers: Number of processes that read and decode images; 0 uses threads in this process. Recommended for large
        images. With 0, splits of images of one size that take at most 1 GiB are kept in memory.
      resident: Whether to read all images in advance and to keep the training images in the memory of every device.
        Many steps then run as one program. Recommended for small images on a GPU or TPU; slow on a CPU.

    Raises:
      UserError: as in `open_source`; if a key is unknown, or a value is invalid.
    """
    checked_arguments(open_inputs, locals(), "config.data")
    settings = {"data_dir": data_dir, "labels": labels, "skip_unreadable": skip_unreadable}
    if test_name:
        train, test = open_source(name, train_split, **settings), open_source(test_name, test_split, **settings)
    else:
        train, test = open_sources(name, [train_split, test_split], **settings)
    _check_pair(train, test)
    if train.image_size != test.image_size:
        train, test = train._replace(image_size=0), test._replace(image_size=0)
    if not image_size and not train.image_size:
        raise UserError(f"config.data.image_size is required: the images of '{name}' vary in size; 224 is typical")
    if resident and not (train.image_size and test.image_size):
        raise UserError(f"config.data.resident must be False, since the images of '{name}' vary in size")
    if resident and skip_unreadable:
        raise UserError("config.data.resident must be False with config.data.skip_unreadable")
    settings = augmentation or {}
    if "scale" in settings and not image_size:
        raise UserError("config.data.augmentation.scale requires config.data.image_size: without it nothing is cropped")
    resized = bool(image_size and train.image_size)
    sizes = {"num_classes": train.num_classes, "size": image_size if resized else 0}
    augment = augmentations.create(
        **checked_arguments(augmentations.create, settings, "config.data.augmentation", sizes)
    )
    side = train.image_size or image_size
    if augment.padding >= side:
        raise UserError(
            f"config.data.augmentation.padding must be less than the size of the images, {side}, got {augment.padding}"
        )
    return Inputs(train, test, image_size or train.image_size, resized, augment, workers, resident)


def _check_pair(train: Source, test: Source) -> None:
    """Raises if the two sources do not have the same classes and channels, or one contains the other."""
    for key, first, second in (
        ("number of classes", train.num_classes, test.num_classes),
        ("names of the classes", train.class_names, test.class_names),
        ("number of channels", train.image_channels, test.image_channels),
    ):
        if first != second:
            raise UserError(
                f"the {key} must be the same for training and testing, got {shown(first)} in '{train.name}' and "
                f"{shown(second)} in '{test.name}'"
            )
    folders = [os.path.realpath(s.examples.root) for s in (train, test) if isinstance(s.examples, Files)]
    if len(folders) == 2 and folders[0] != folders[1] and os.path.commonpath(folders) in folders:
        inner, outer = sorted(folders, key=len, reverse=True)
        raise UserError(f"{inner} is inside {outer}, but one is for training and the other for testing")
