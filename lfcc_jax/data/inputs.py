"""What a run reads, and what is done to it: the `data` block of a config."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from lfcc_jax.arguments import Between, checked_arguments
from lfcc_jax.data import augmentation as augmentations
from lfcc_jax.data.in_memory import fits_in_memory, in_memory
from lfcc_jax.data.source import Source, open_source
from lfcc_jax.errors import UserError


class Splits(NamedTuple):
    """Training and test images, as networks will see them.

    Attributes:
      train: the images to train on.
      test: the images to evaluate on.
      image_size: height and width of what the networks get, in pixels.
      resized: Whether images of one size are cropped and resized on the device, because `image_size` is given.
      augmentation: what is done to training images on the device.
      scale: least and largest share of a photograph that a random crop on the host keeps.
      workers: processes that read and decode.
      resident: whether all images are read at once, the training images into device memory.
    """

    train: Source
    test: Source
    image_size: int
    resized: bool
    augmentation: augmentations.Augmentation
    scale: tuple[float, float]
    workers: int
    resident: bool


def open_splits(
    name: str,
    train_split: str = "train",
    test_split: str = "test",
    data_dir: str = "",
    image_size: Annotated[int, Between(0, 8192)] = 0,
    augmentation: Mapping[str, Any] | None = None,
    workers: Annotated[int, Between(0, 256)] = 0,
    resident: bool = False,
) -> Splits:
    """Returns training and test data.

    Args:
      name: as in `open_source`.
      train_split: what to train on, in TFDS's notation.
      test_split: what to evaluate on.
      data_dir: as in `open_source`.
      image_size: Side of what the networks get, in pixels. Training images are random crops resized to it, even if it
        is the images' own size; test images are resized and cropped as the student's weights want it. 0 leaves images
        as they are.
      augmentation: keyword arguments of `lfcc_jax.data.augmentation.create`, but
        `num_classes` and `size`.
      workers: Number of processes that read and decode images; 0 uses threads in this process. Worth it
        for photographs. Without them, splits of images of one size that take at most 1 GiB are kept in memory.
      resident: whether all images are read at once, and training images live in the memory of every device; many steps
        are then one program. Worth it for small images on a GPU or TPU; on a CPU such programs are slow.

    Raises:
      UserError: as `open_source`; for a key that is unknown, or a value that makes no sense.
    """
    checked_arguments(open_splits, locals(), "config.data")
    train, test = open_source(name, train_split, data_dir), open_source(name, test_split, data_dir)
    if not image_size and not train.image_size:
        raise UserError(f"config.data.image_size: missing; the images of '{name}' vary in size, 224 is usual")
    if resident and not (train.image_size and test.image_size):
        raise UserError(f"config.data.resident: the images of '{name}' vary in size, and are cropped on the host")
    given = augmentation or {}
    if "scale" in given and not image_size:
        raise UserError("config.data.augmentation.scale needs config.data.image_size: without it nothing is cropped")
    resized = bool(image_size and train.image_size)
    sizes = {"num_classes": train.num_classes, "size": image_size if resized else 0}
    augment = augmentations.create(**checked_arguments(augmentations.create, given, "config.data.augmentation", sizes))
    side = train.image_size or image_size
    if augment.padding >= side:
        raise UserError(
            f"config.data.augmentation.padding must be less than the size of the images, {side}, got {augment.padding}"
        )
    return Splits(train, test, image_size or train.image_size, resized, augment, augment.scale, workers, resident)


def load(splits: Splits) -> Splits:
    """Returns the splits with small images of one size in memory.

    So every example is checked before training. What is left as it is (images that vary in size, splits of more than
    1 GiB, and those that worker processes read) is checked example by example, as it is read.

    Raises:
      UserError: for the first example that `examples.read` refuses.
    """
    if splits.resident:
        return splits._replace(train=in_memory(splits.train), test=in_memory(splits.test))
    if splits.workers:  # processes share no memory
        return splits
    train, test = (in_memory(source) if fits_in_memory(source) else source for source in (splits.train, splits.test))
    return splits._replace(train=train, test=test)
