"""Each data set is found, read in full, labelled and normalised; damaged files are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from spiketriton.config.parts import chosen
from spiketriton.data import build_data, cifar, digits, fashion_mnist, photographs
from spiketriton.data.fashion_mnist import DEBIAN_FASHION_MNIST
from spiketriton.data.photographs import IMAGENETTE_ARCHIVES
from tests.small_data import (
    WNIDS,
    accept_checksums,
    all_of,
    damage,
    data_recipe,
    make_cifar10,
    make_cifar100,
    make_class_tree,
    make_fashion_mnist,
    make_imagenette,
    mentions,
    mistake,
)


def raw(images: torch.Tensor, name: str, recipe) -> torch.Tensor:
    """Normalisation undone: the network's images as levels 0..255."""
    mean, std = (
        torch.tensor(v)[:, None, None] for v in chosen("data", name).make(recipe.data).statistics
    )
    return (images * std + mean) * 255


@pytest.mark.parametrize("variant", ["full", "160px"])
def test_imagenette(tmp_path, variant):
    make_imagenette(tmp_path, variant)
    data = build_data(data_recipe("imagenette", tmp_path, data=f'variant = "{variant}"'))
    assert (data.classes[0], data.classes[9]) == ("tench", "parachute")
    assert (data.train.images, data.test.images, data.channels) == (30, 30, 3)
    images, labels = next(data.train.from_step(0))
    assert (images.shape, images.dtype) == ((4, 3, 224, 224), torch.float32)
    images, labels = all_of(data.test)
    assert torch.isfinite(images).all()
    assert torch.equal(labels, torch.arange(10).repeat_interleave(3))


@pytest.mark.parametrize(("place", "test_name"), [(".", "val"), ("imagenette", "test")])
def test_imagenette_from_any_folder_with_its_classes(tmp_path, place, test_name):
    make_class_tree(tmp_path / place, ("train", test_name), WNIDS, per_class=2)
    data = build_data(data_recipe("imagenette", tmp_path, data="image_size = 16"))
    assert (data.classes[0], data.classes[9]) == ("tench", "parachute")
    assert (data.train.images, data.test.images) == (20, 20)
    assert data.place == tmp_path / place
    make_imagenette(tmp_path)  # the archive's folder comes first
    assert build_data(data_recipe("imagenette", tmp_path)).train.images == 30


def test_names_of_imagenettes_classes_are_torchvisions():
    known = {key: names[0] for key, names in datasets.Imagenette._WNID_TO_CLASS.items()}
    assert known == photographs._IMAGENETTE_CLASSES


def test_imagenette_archives_are_torchvisions():
    known = {k: (file.url, file.md5) for k, file in IMAGENETTE_ARCHIVES.items()}
    assert known == datasets.Imagenette._ARCHIVES


def test_images_are_normalised_by_these_numbers_for_ever():
    """Or a trained network would see other inputs."""
    assert photographs.IMAGENET_STATISTICS == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cifar.CIFAR10_STATISTICS == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert cifar.CIFAR100_STATISTICS == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert fashion_mnist.FASHION_STATISTICS == ((0.2860,), (0.3530,))
    assert digits.DIGITS_STATISTICS == ((0.3054,), (0.3760,))
    assert digits.SYNTHETIC_STATISTICS == ((0.5,) * 3, (0.2887,) * 3)


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_imagefolder(tmp_path, test_name):
    make_class_tree(tmp_path, ("train", test_name), ("ape", "bee"), per_class=4)
    data = build_data(data_recipe("imagefolder", tmp_path, data="image_size = 40"))
    assert data.classes == ("ape", "bee")
    images, labels = all_of(data.test)
    assert images.shape == (8, 3, 40, 40)
    assert labels.tolist() == [0] * 4 + [1] * 4


def test_class_folders_alone_are_split_by_the_names_of_their_files(tmp_path):
    make_class_tree(tmp_path, ("mine",), ("ape", "bee"), per_class=10)
    root = (tmp_path / "mine").rename(tmp_path / "moved")

    def split(folder):
        source = photographs.imagefolder(data_recipe("imagefolder", folder).data)
        return [
            sorted(str(part.path(i).relative_to(folder)) for i in range(len(part)))
            for part in (source.train, source.test)
        ]

    train, test = split(root)
    assert [len(train), len(test)] == [16, 4]
    assert [path.split("/")[0] for path in test] == ["ape"] * 2 + ["bee"] * 2
    assert {*train, *test} == {str(p.relative_to(root)) for p in root.rglob("*.*")}
    elsewhere = root.rename(tmp_path / "elsewhere")
    assert split(elsewhere) == [train, test], "wherever they lie"
    data = build_data(data_recipe("imagefolder", elsewhere, data="validation = 0.25"))
    assert (data.train.images, data.validation.images, data.test.images) == (12, 4, 4)
    assert "no train folder: a fifth of each class is tested" in data.note
    for path in sorted((elsewhere / "bee").iterdir())[1:]:
        path.unlink()
    mentions(mistake(data_recipe("imagefolder", elsewhere)), "bee has one image", "two or more")
    (elsewhere / "val").mkdir()
    mentions(mistake(data_recipe("imagefolder", elsewhere)), "no folder", "train")


def test_gif_and_webp_count_and_what_is_hidden_does_not(tmp_path):
    make_class_tree(tmp_path, ("train", "val"), ("a", "b"), 3)
    for ending in ("gif", "webp", "WEBP"):
        Image.new("RGB", (20, 20)).save(tmp_path / "train" / "a" / f"more.{ending}")
    Image.new("RGB", (20, 20)).save(tmp_path / "train" / "a" / "._resource.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "val" / ".DS").mkdir()
    data = build_data(data_recipe("imagefolder", tmp_path))
    assert data.classes == ("a", "b")
    assert data.train.images == 6 + 3


@pytest.fixture
def cifar_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    archives = {"cifar10": make_cifar10(tmp_path), "cifar100": make_cifar100(tmp_path)}
    for archive in archives.values():
        accept_checksums(archive, monkeypatch.setattr)
    return archives


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_unpacked_and_read(cifar_archives, name, classes):
    root = cifar_archives[name].parent
    recipe = data_recipe(name, root, data='augment = "none"\ndownload = false')
    data = build_data(recipe)
    assert len(data.classes) == classes
    assert data.classes[3] in {"label 3", "fine 3"}
    assert (data.train.images, data.test.images, data.image_size) == (40, 40, 32)
    images, labels = all_of(data.test)
    real = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](root, train=False)
    assert labels.tolist() == real.targets
    expected = torch.from_numpy(real.data).permute(0, 3, 1, 2)
    torch.testing.assert_close(raw(images, name, recipe), expected.float(), atol=1e-3, rtol=0)
    assert [path.name for path in root.iterdir() if path.name.startswith(".unpacking")] == []


def make_small_images(
    folder: Path, splits: tuple[str, ...] = ("train", "test"), ending: str = "png"
) -> dict[str, np.ndarray]:
    """Class folders of 6 images of 32x32 in each of two classes; returns the pixels, [N, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8) for split in splits}
    for split, images in pixels.items():
        for at, image in enumerate(images):
            path = folder / split / ("airplane", "bird")[at // 6] / f"{at:04}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return {split: images.transpose(0, 3, 1, 2) for split, images in pixels.items()}


@pytest.mark.parametrize(
    ("name", "place", "test_name"),
    [("cifar10", "cifar10", "test"), ("cifar10", ".", "val"), ("cifar100", "cifar100", "test")],
)
def test_cifar_from_class_folders(tmp_path, name, place, test_name):
    pixels = make_small_images(tmp_path / place, ("train", test_name))
    recipe = data_recipe(name, tmp_path, data='augment = "none"')
    data = build_data(recipe)
    assert data.classes == ("airplane", "bird")
    assert (data.train.images, data.test.images, data.image_size) == (12, 12, 32)
    images, labels = all_of(data.test)
    assert labels.tolist() == [0] * 6 + [1] * 6
    expected = torch.from_numpy(pixels[test_name]).float()
    torch.testing.assert_close(raw(images, name, recipe), expected, atol=1e-3, rtol=0)
    assert data.facts.move == "crop"  # with padding, and flipped
    mentions(data.note, tmp_path / place, f"not {name}'s archive")
    assert "JPEG" not in data.note


def test_cifar10_says_that_jpegs_are_not_the_original_pixels(tmp_path):
    make_small_images(tmp_path / "cifar10", ending="jpg")
    mentions(build_data(data_recipe("cifar10", tmp_path)).note, "JPEG", "costs accuracy")


def make_tiny_imagenet(folder: Path) -> dict[str, list[np.ndarray]]:
    """Three classes of its layout, two images each in train (one of them grey) and in val; the pixels, in the order
    of the reader, as the JPEGs have them."""
    rng = np.random.default_rng(1)
    wnids = ("n01443537", "n01629819", "n02085620")
    words = {"n01443537": "goldfish, Carassius auratus", "n01629819": "goldfish"}
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in words.items()))
    pixels: dict[str, list[np.ndarray]] = {"train": [], "val": []}

    def made(path: Path, grey: bool) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (64, 64) if grey else (64, 64, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)

    lines = []
    for at, wnid in enumerate(wnids):
        for copy in range(2):
            path = folder / "train" / wnid / "images" / f"{wnid}_{copy}.JPEG"
            pixels["train"].append(made(path, grey=copy == 1))
            name = f"val_{5 - 2 * at - copy}.JPEG"  # not in the order of the classes
            pixels["val"].append(made(folder / "val" / "images" / name, grey=False))
            lines.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return pixels


@pytest.mark.parametrize(
    "place", ["tiny_imagenet", "tiny-imagenet-200", "tiny_imagenet/tiny-imagenet-200", "."]
)
def test_tiny_imagenet_in_its_own_layout(tmp_path, place):
    pixels = make_tiny_imagenet(tmp_path / place)
    recipe = data_recipe("tiny_imagenet", tmp_path, data='augment = "none"')
    data = build_data(recipe)
    assert data.classes == ("goldfish (n01443537)", "goldfish (n01629819)", "n02085620")
    assert (data.train.images, data.test.images, data.image_size) == (6, 6, 64)
    images, labels = all_of(data.test)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = torch.from_numpy(np.stack(pixels["val"])).float()
    torch.testing.assert_close(raw(images, "tiny_imagenet", recipe), expected, atol=1e-3, rtol=0)
    train = build_data(data_recipe("tiny_imagenet", tmp_path)).train.dataset.split
    assert np.array_equal(train.images, np.stack(pixels["train"]))
    assert data.facts.move == "crop"


@pytest.mark.parametrize("how", ["no annotations", "unknown image", "unknown class", "no line"])
def test_a_damaged_tiny_imagenet(tmp_path, how):
    folder = tmp_path / "tiny-imagenet-200"
    make_tiny_imagenet(folder)
    path = folder / "val" / "val_annotations.txt"
    words: tuple[object, ...] = (path, "line 1")
    lines = path.read_text()
    if how == "no annotations":
        path.unlink()
        words = (path, "cannot be read", "accepted", "val/images")
    elif how == "unknown image":
        path.write_text(lines.replace("val_5.JPEG", "val_77.JPEG"))
        words += ("no image", "val_77.JPEG")
    elif how == "unknown class":
        path.write_text(lines.replace("n01443537", "n07777777"))
        words += ("n07777777", "no class")
    else:
        path.write_text(lines.partition("\n")[2])
        words = (path, "no line for", "val_5.JPEG")
    mentions(mistake(data_recipe("tiny_imagenet", tmp_path)), *words)


def test_without_tiny_imagenet_its_archive_is_named(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)  # of another data set
    message = mistake(data_recipe("tiny_imagenet", tmp_path, data="download = false"))
    mentions(message, "tiny-imagenet-200.zip", tmp_path, "data.download is false")


@pytest.mark.parametrize(
    ("sizes", "image_size", "seen", "words"),
    [
        ([(32, 32)], 0, 32, ("images of 32x32 pixels are seen at 32x32, not at 224x224",)),
        ([(40, 32)], 0, 32, ("images of 40x32 pixels are seen at 32x32",)),
        ([(32, 32)], 48, 48, ("images of 32x32 pixels are enlarged to 48x48", "data.image_size")),
        ([(32, 32), (300, 240)], 0, 224, ("fewer than 224 pixels", "enlarged to 224x224")),
        ([(32, 32)], 24, 24, ()),
        ([(300, 240)], 0, 224, ()),
    ],
)
def test_images_of_a_folder_are_not_enlarged_without_a_word(
    tmp_path, sizes, image_size, seen, words
):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for at in range(4):
                path = tmp_path / split / name / f"{at}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", sizes[at % len(sizes)]).save(path)
    data = build_data(data_recipe("imagefolder", tmp_path, data=f"image_size = {image_size}"))
    assert data.image_size == seen
    mentions(data.note, *words)
    assert bool(data.note) == bool(words)


def test_the_archive_of_cifar10_comes_before_class_folders(cifar_archives):
    root = cifar_archives["cifar10"].parent
    make_small_images(root / "cifar10")
    data = build_data(data_recipe("cifar10", root))
    assert (data.train.images, data.note) == (40, "")


@pytest.mark.parametrize(
    "how", ["cut short", "other size", "other size in test", "no class", "no test"]
)
def test_class_folders_that_are_not_cifar10(tmp_path, how):
    folder = tmp_path / "cifar10"
    make_small_images(folder)
    path = folder / "train" / "bird" / "0009.png"
    words: tuple[object, ...] = (path, "class bird")
    if how == "cut short":
        damage(path, how)
    elif how == "other size":
        Image.new("RGB", (20, 24)).save(path)
        words = (path, "24x20", "32x32", "one size", "imagefolder")
    elif how == "other size in test":
        for path in sorted((folder / "test").rglob("*.png")):
            Image.new("RGB", (20, 24)).save(path)
        words = (folder / "test", "24x20", "32x32", "one size")
    elif how == "no class":
        (folder / "test" / "bird").rename(folder / "test" / "dog")
        words = ("only in train: bird", "only in test: dog")
    else:
        (folder / "test").rename(folder / "tests")
        words = (folder / "test", "no folder", "train/<class>/")
    mentions(mistake(data_recipe("cifar10", tmp_path)), *words)


@pytest.mark.parametrize(
    ("place", "zipped"), [(".", True), ("FashionMNIST/raw", False), ("debian", True)]
)
def test_fashion_mnist_in_the_root_in_torchvisions_or_in_debians_place(
    tmp_path, monkeypatch, place, zipped
):
    debian = tmp_path / "debian"
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FASHION_MNIST", debian)
    make_fashion_mnist(debian, n=20)  # data.root comes first
    make_fashion_mnist(tmp_path / place, n=30, zipped=zipped)
    data = build_data(data_recipe("fashion_mnist", tmp_path, data="download = false"))
    assert (data.train.images, data.test.images, data.channels) == (30, 30, 1)
    assert data.place == (debian if place == "debian" else None)
    images, labels = all_of(data.test)
    assert images.shape == (30, 1, 28, 28)
    assert torch.equal(labels, torch.arange(30) % 10)


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_the_real_fashion_mnist(tmp_path):
    recipe = data_recipe("fashion_mnist", tmp_path, data='augment = "none"')
    data = build_data(recipe)
    assert (data.train.images, data.test.images) == (60_000, 10_000)
    assert data.classes[9] == "Ankle boot"
    split = data.train.dataset.split
    assert torch.equal(split.labels.bincount(), torch.full((10,), 6_000))
    assert split.labels[0] == 9  # the first training image is an ankle boot
    pixels = data.train.dataset.transform(split.images, None)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3


def test_digits_come_with_the_package():
    data = build_data(data_recipe("digits", data='augment = "none"'))
    assert (data.train.images, data.test.images, data.image_size) == (1_437, 360, 16)
    assert data.classes == tuple("0123456789")
    assert not data.synthetic
    train, test = data.train.dataset.split, data.test.dataset.split
    levels = torch.cat([train.images, test.images]).unique()
    assert levels.tolist() == [(level * 255 + 8) // 16 for level in range(17)]
    counts = train.labels.bincount() + test.labels.bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of the UCI file
    native = data_recipe("digits", data='augment = "none"\nimage_size = 8')
    images = build_data(native).train.dataset.transform(train.images, None)
    assert abs(float(images.mean())) < 2e-3
    assert abs(float(images.std()) - 1) < 2e-3


def test_synthetic_says_so_and_its_images_are_these_for_ever():
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 12, 12), dtype=torch.uint8, generator=drawn)
    labels = [torch.randint(7, (count,), generator=drawn) for count in (200, 100)]
    extra = "classes = 7\nimage_size = 12\ntrain_images = 200\ntest_images = 100"
    data = build_data(data_recipe("synthetic", data=extra))
    for part, expected in zip((data.train, data.test), labels, strict=True):
        split = part.dataset.split
        assert torch.equal(split.labels, expected)
        assert torch.equal(split.read(np.arange(80)), images[np.arange(80) % 64])
    assert data.synthetic
    assert len(data.classes) == 7
    assert all("synthetic" in name for name in data.classes)
    plain = build_data(data_recipe("synthetic"))
    assert (plain.train.images, plain.test.images, plain.image_size) == (1024, 256, 32)


def test_folders_that_are_no_data_set_are_named(tmp_path):
    def says(*words, name="imagenette"):
        mentions(mistake(data_recipe(name, tmp_path)), *words)

    folder = make_imagenette(tmp_path)
    train, val = folder / "train", folder / "val"
    for split in (train, val):
        (split / WNIDS[3]).rename(split / "n00000000")
    says(train, "n00000000", "not one of Imagenette's ten classes")
    for path in (val / WNIDS[2]).iterdir():
        path.unlink()
    says(val, WNIDS[2])
    val.rename(tmp_path / "elsewhere")
    says(val, "No such file")
    make_class_tree(tmp_path, ("train",), ("ape", "bee", "cat"), 1)
    make_class_tree(tmp_path, ("val",), ("ape", "bee", "dog"), 1)
    says("only in train: cat", "only in val: dog", name="imagefolder")


@pytest.mark.parametrize(
    ("file", "how"), [("train", "gone"), ("test", "cut short"), ("meta", "gone")]
)
def test_a_damaged_cifar_file(cifar_archives, file, how):
    root = cifar_archives["cifar100"].parent
    build_data(data_recipe("cifar100", root))
    path = root / "cifar-100-python" / file
    damage(path, how)
    message = mistake(data_recipe("cifar100", root))
    mentions(message, path, "missing" if how == "gone" else "cut short", "remove", root)


def test_a_hostile_pickle_is_not_opened(cifar_archives, tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was here",)

    root = cifar_archives["cifar10"].parent
    build_data(data_recipe("cifar10", root))
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Hostile()))
    mentions(mistake(data_recipe("cifar10", root)), "data_batch_3", "damaged")
    assert not (tmp_path / "was here").exists()
