"""Folders of images, and images listed in CSV files."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from lfcc_jax import data
from lfcc_jax.data import check
from lfcc_jax.errors import UserError


def write(path, pixels=None, size=(12, 10), **how):
    """Writes an image of one color, or of some pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, hash(path.name) % 255) if pixels is None else Image.fromarray(pixels)
    image.save(path, **how)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three class folders of ten images, with names and places that people have."""
    root = tmp_path / "my photos é"
    for name, below in (("cat", ""), ("dog", "2024/"), ("gnu ü", "")):
        for i in range(10):
            write(root / name / below / f"a picture {i}.{('jpg', 'PNG', 'webp')[i % 3]}")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._a picture 0.jpg").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_bytes(b"x")
    return root


def test_class_folders_give_classes_and_splits(photos):
    train, test = (data.open_source(f"folder:{photos}", split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples)) == (27, 3)
    assert train.class_names == test.class_names == ("cat", "dog", "gnu ü")
    for source in (train, test):
        for i in range(len(source.examples)):
            example = data.read(source, i)
            assert f"/{source.class_names[example['label']]}/" in source.where(i)
            assert np.asarray(example["image"]).shape == (10, 12, 3)
    copy = pickle.loads(pickle.dumps(train))  # as worker processes get it
    assert [copy.where(i) for i in range(27)] == [train.where(i) for i in range(27)]


def test_without_labels_all_images_at_any_depth_are_used(photos):
    write(photos / "loose.jpg")
    source = data.open_source(f"folder:{photos}", "all", labels=False)
    assert (len(source.examples), source.num_classes, source.class_names) == (31, 0, ())
    assert set(data.read(source, 0)) == {"image", "index"}


def test_a_flat_folder_has_no_labels(photos):
    source = data.open_source(f"folder:{photos / 'cat'}", "all")
    assert (len(source.examples), source.num_classes) == (10, 0)


def test_folders_called_train_and_val_are_the_splits(photos, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    os.rename(photos, root / "train")
    write(root / "val" / "dog" / "x.jpg")
    train, test = (data.open_source(f"folder:{root}", split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples)) == (30, 1)
    assert test.class_names == train.class_names
    assert data.read(test, 0)["label"] == 1  # `dog`, though it is the only class there
    write(root / "val" / "emu" / "x.jpg")
    with pytest.raises(UserError, match=f"{root}/val/emu is a class that {root}/train does not have"):
        data.open_source(f"folder:{root}", "train")


def test_images_of_one_size_are_known_to_be(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    for i in range(6):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", pixels[i])
    inputs = data.open_inputs(f"folder:{tmp_path}", train_split="all", test_split="all").load()
    assert inputs.images == data.Images(2, 8, 3, 6, ("a", "b"))
    batch = next(inputs.train_batches(6, seed=0))
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        i = int(os.path.basename(data.open_source(f"folder:{tmp_path}", "all").where(index)).split(".")[0])
        np.testing.assert_array_equal(image, pixels[i])
        assert label == i % 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_color(tmp_path, mode):
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = (
        Image.fromarray((gray.astype(np.uint16) << 8) | 7) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    )
    path = tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    pixels = data.read(data.open_source(f"folder:{tmp_path}", "all"), 0)["image"]
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        np.testing.assert_allclose(pixels[..., 0], gray, atol=4)


def test_exif_orientation_is_applied_to_files_only(tmp_path):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :6] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left becomes the top
    write(tmp_path / "turned.png", pixels, exif=exif)
    source = data.open_source(f"folder:{tmp_path}", "all")
    image = np.asarray(data.read(source, 0)["image"])
    assert image.shape == (12, 8, 3)
    assert image[:6].min() == 255
    assert image[6:].max() == 0
    assert np.asarray(data.read(source._replace(upright=False), 0)["image"]).shape == (8, 12, 3)


def _one_class(root):
    write(root / "cat" / "a.jpg")


def _single_image(root):
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg"):
        write(root / name)


def _loose_image(root):
    write(root / "cat" / "a.jpg")
    write(root / "b.jpg")


def _loop(root):
    write(root / "cat" / "a.jpg")
    (root / "cat" / "loop").symlink_to(root)


def _empty_file(root):
    write(root / "a.jpg")
    (root / "b.jpg").touch()


def _text(root):
    (root / "a.jpg").write_text("not an image")


def _truncated_header(root):
    content = write(root / "a.png", size=(30, 30)).read_bytes()
    (root / "a.png").write_bytes(content[:20])


def _huge(root):
    Image.new("1", (10_000, 10_000)).save(root / "a.png")


def _class_called_train(root):
    for name in ("car/a.jpg", "train/a.jpg", "train/b.jpg", "plane/a.jpg"):
        write(root / name)


def _splits_without_train(root):
    for name in ("val/cat/a.jpg", "test/cat/b.jpg"):
        write(root / name)


def _all_unreadable(root):
    (root / "a.jpg").write_text("not an image")


def _other_files(root):
    (root / "a.heic").write_bytes(b"x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "/empty contains no images"),
        (_other_files, "contains no images .*, only 1 .heic"),
        (_one_class, "has only one class folder, cat; set config.data.labels=False to train without labels"),
        (_single_image, "/dog contains one image; a class needs at least two"),
        (_loose_image, "contains images both in folders \\(cat/a.jpg\\) and next to them \\(b.jpg\\)"),
        (_loop, "/cat/loop is a link to a folder that contains it"),
        (_empty_file, "/b.jpg cannot be read: the file is empty"),
        (_class_called_train, "must contain train and test .* only, .* got train next to car, plane; rename"),
        (_splits_without_train, "must contain train and test .* only, .* got test, val next to no train"),
        (_text, "/a.jpg cannot be read: cannot identify image file"),
        (_truncated_header, "/a.png cannot be read"),
        (_huge, "/a.png cannot be read: it has 10,000 x 10,000 pixels; images must have at most 89,478,485"),
    ],
)
def test_open_source_rejects_unusable_folders(tmp_path, make, message):
    root = tmp_path / "empty"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=message):
        data.open_source(f"folder:{root}", "all")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:/nowhere", "folder '/nowhere' does not exist"),
        ("folder:gs://bucket/photos", "folder 'gs://bucket/photos' must be on a local disk"),
        ("csv:/nowhere.csv", "'/nowhere.csv' cannot be read as CSV"),
    ],
)
def test_open_source_rejects_missing_files(name, message):
    with pytest.raises(UserError, match=message):
        data.open_source(name, "train")


def test_a_folder_without_prefix_gets_the_name_that_works(photos):
    with pytest.raises(UserError, match=f"set config.data.name=folder:{photos}"):
        data.open_source(str(photos), "train")


def test_open_inputs_rejects_a_training_folder_inside_the_test_folder(photos):
    with pytest.raises(UserError, match="/cat is inside .*, but one is for training and the other for testing"):
        data.open_inputs(f"folder:{photos}/cat", test_name=f"folder:{photos}", image_size=8, labels=False)


def test_open_inputs_rejects_test_images_of_other_classes(photos, tmp_path):
    for name in ("cat", "emu", "fox"):
        for i in range(2):
            write(tmp_path / "other" / name / f"{i}.jpg")
    with pytest.raises(UserError, match="the names of the classes must be the same for training and testing"):
        data.open_inputs(f"folder:{photos}", test_name=f"folder:{tmp_path / 'other'}", image_size=8)


def damage(photos):
    """Cuts an image short, so that its header can be read and its pixels cannot. Returns its path."""
    path = write(photos / "cat" / "damaged.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_an_unreadable_image_is_named_or_skipped(photos, capfd):
    path = damage(photos)
    settings = {"train_split": "all", "test_split": "all", "image_size": 8}
    batches = data.open_inputs(f"folder:{photos}", **settings).train_batches(31, seed=0)
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        next(batches)
    batches.close()
    inputs = data.open_inputs(f"folder:{photos}", **settings, skip_unreadable=True)
    batches = inputs.train_batches(31, seed=0)
    batch = next(batches)
    batches.close()
    assert set(batch) == {"image", "label", "index"}
    assert len(set(batch["index"].tolist())) == 30  # another image is there twice
    assert capfd.readouterr().err == f"skipped {path}: it cannot be read (1 so far)\n"
    (tested,) = inputs.test_batches(31, 1.0, "bicubic")()
    assert tested["mask"].sum() == 30  # and is not counted twice in evaluation


def test_images_of_another_size_in_the_test_split_are_cropped_to_the_networks(tmp_path):
    for i in range(4):
        write(tmp_path / "photos" / "train" / f"{i}.png", size=(16, 16))
        write(tmp_path / "photos" / "val" / f"{i}.png", size=(20, 20))
    inputs = data.open_inputs(f"folder:{tmp_path / 'photos'}", image_size=16)
    (batch,) = inputs.test_batches(4, 1.0, "bicubic")()
    assert batch["image"].shape == (4, 16, 16, 3)
    assert inputs.prepare_test(1.0, "bicubic")(batch["image"]).shape == (4, 16, 16, 3)


def test_other_files_are_another_data_set(photos):
    before = data.open_inputs(f"folder:{photos}", image_size=8).fingerprints()
    write(photos / "cat" / "new.jpg")
    after = data.open_inputs(f"folder:{photos}", image_size=8).fingerprints()
    assert before["train"]["files"] != after["train"]["files"]


def test_a_folder_of_unreadable_images_alone_is_an_error(tmp_path):
    _all_unreadable(tmp_path)
    with pytest.raises(UserError, match="none of the first 1 images of .* can be read"):
        data.open_source(f"folder:{tmp_path}", "all", skip_unreadable=True)


def test_more_than_a_hundred_unreadable_images_in_a_row_are_an_error(tmp_path):
    for i in range(120):
        path = write(tmp_path / f"{i}.png", size=(40, 40))
        path.write_bytes(path.read_bytes()[:60])
    source = data.open_source(f"folder:{tmp_path}", "all", skip_unreadable=True)
    with pytest.raises(UserError, match="png and 100 images after it cannot be read"):
        data.read(source, 0)


def test_the_check_names_every_unreadable_image(photos, capsys):
    path = damage(photos)
    (photos / "dog" / "zero.jpg").touch()
    with pytest.raises(SystemExit) as exit:
        check.main([f"folder:{photos}", "--workers=1"])
    out = capsys.readouterr().out
    assert exit.value.code == 1
    assert f"{path}: cannot be read" in out
    assert f"{photos}/dog/zero.jpg" in out
    assert "32 images" in out
    assert "2 of them cannot be read" in out


def test_csv_files_list_images_with_labels_and_splits(photos, tmp_path):
    rows = [("path", "label", "split")]
    rows += [
        (f"cat/a picture {i}.{('jpg', 'PNG', 'webp')[i % 3]}", "cat", "train" if i < 8 else "test") for i in range(10)
    ]
    rows += [(f"{photos}/gnu ü/a picture 0.jpg", "gnu", "train")]  # absolute
    (photos / "list.csv").write_text("\ufeff" + "".join(",".join(row) + "\n" for row in rows))
    train, test = (data.open_source(f"csv:{photos / 'list.csv'}", split) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.class_names) == (9, 2, ("cat", "gnu"))
    labels = {os.path.basename(os.path.dirname(train.where(i))): int(data.read(train, i)["label"]) for i in range(9)}
    assert labels == {"cat": 0, "gnu ü": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.jpg,1\n", "the first line must name the columns: path, label; got image, label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.jpg,0\na.jpg,1\n", "a.jpg is listed 2 times"),
        ("path,label\na.jpg,0\n,1\n", "line 3: the path is missing"),
        ("path,label\na.jpg,0\nb.jpg,1.5\n", "line 3: a label must be a whole number in \\[0, 100,000\\), got '1.5'"),
        ("path,label\na.jpg,0\nb.jpg,0\n", "there is only one class"),
        ("path,label\n\n\na.jpg,x,y\n", "line 4 must have 2 columns, got more; a path with a comma needs quotes"),
        ("path,split\na.jpg,train\nb.jpg,\n", "line 3: the split is missing"),
        ("path,label\na.jpg,0\nb.jpg,1\n", "/[ab].jpg cannot be read: No such file or directory"),
    ],
)
def test_open_source_rejects_unusable_csv_files(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        data.open_source(f"csv:{tmp_path / 'list.csv'}", "all")
