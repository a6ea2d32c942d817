"""Images from files and from memory: any mode becomes RGB; an unreadable file is named with its class."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from spiketriton.data import build_data
from spiketriton.data.splits import ArraySplit, FileSplit, Photo, in_bytes
from spiketriton.system.errors import UserError
from tests.small_data import WNIDS, damage, data_recipe, make_imagenette, mentions, noise_image


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "CMYK", "I;16"])
def test_an_image_of_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
        Image.fromarray(grey).save(path)
    elif mode == "PA":
        noise_image(np.random.default_rng(0), "P", (8, 8)).save(path, transparency=0)
    else:
        noise_image(np.random.default_rng(0), mode, (8, 8)).save(path)
    image = Photo(path, "x").decode()
    pixels = np.asarray(image)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    if mode in ("1", "L"):
        assert (pixels == pixels[..., :1]).all()
    if mode == "I;16":
        assert np.array_equal(pixels[..., 0], grey >> 8)
    assert len(np.unique(pixels)) > 1


def test_grey_of_32_bits_is_read_as_16_bits(tmp_path):
    levels = np.array([[-5, 0, 255, 256, 0x1234, 65535, 65536, 2**31 - 1]], dtype=np.int32)
    Image.fromarray(levels).save(tmp_path / "image.tiff")
    pixels = np.asarray(Photo(tmp_path / "image.tiff", "x").decode())
    assert pixels[0, :, 1].tolist() == [0, 0, 0, 1, 0x12, 255, 255, 255]


@pytest.mark.parametrize(
    ("how", "workers"), [("empty", 0), ("cut short", 2), ("no image", 0), ("gone", 2)]
)
def test_an_unreadable_photograph_names_its_file_and_class(tmp_path, how, workers):
    folder = make_imagenette(tmp_path, per_class=1)
    extra = f"image_size = 32\nworkers = {workers}"
    data = build_data(data_recipe("imagenette", tmp_path, data=extra))
    for split in ("train", "val"):
        path = folder / split / WNIDS[3] / f"{WNIDS[3]}_{split}_0.JPEG"
        damage(path, how)
        with pytest.raises(UserError) as caught:
            list(data.test if split == "val" else islice(data.train.from_step(0), 2))
        mentions(str(caught.value), path, "(class chain saw)", "empty" if how == "empty" else "")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_arrays_are_read_in_the_order_asked_for():
    images = np.arange(6, dtype=np.uint8).reshape(3, 1, 2, 1)
    images.flags.writeable = False  # as a memory map is, or an array of a picture
    split = ArraySplit(images, np.array([2, 1, 0], dtype=np.uint8))
    assert len(split) == 3
    assert split.labels.dtype == torch.int64
    assert split.read(np.array([2, 0, 2])).flatten().tolist() == [4, 5, 0, 1, 4, 5]
    assert in_bytes(torch.tensor([0.0, 0.499, 0.501, 1.0])).tolist() == [0, 127, 128, 255]


def test_files_are_opened_one_by_one(tmp_path):
    for level in (10, 20):
        Image.new("L", (2, 1), level).save(tmp_path / f"é{level}.png")
    samples = [(str(tmp_path / f"é{level}.png"), label) for level, label in ((10, 1), (20, 0))]
    split = FileSplit([*samples, (str(tmp_path / "gone.png"), 1)], ["ape", "bee"])
    assert (len(split), split.labels.tolist(), split.classes) == (3, [1, 0, 1], ("ape", "bee"))
    read = split.read(np.array([1, 0, 2]))
    assert [next(read).decode().getpixel((0, 0)) for _ in range(2)] == [(20,) * 3, (10,) * 3]
    with pytest.raises(UserError, match=r"gone\.png \(class bee\)"):
        next(read)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_reduced_while_it_is_decoded(tmp_path, mode):
    path, small = tmp_path / "image.jpg", np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    blocks = small.astype(np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(blocks).convert(mode).save(path, quality=95)
    whole = np.asarray(Photo(path, "x").decode()).astype(int)
    for reduce, size in ((1, (112, 80)), (2, (56, 40)), (4, (28, 20)), (8, (14, 10))):
        photo = Photo(path, "x")
        image = photo.decode(reduce=reduce)
        assert (photo.size, image.size, image.mode) == ((112, 80), size, "RGB")
        means = whole.reshape(size[1], reduce, size[0], reduce, 3).mean((1, 3))
        assert np.abs(np.asarray(image) - means).mean() < 6  # of 255


def test_pixels_of_floats_are_refused(tmp_path):
    """Nobody knows their range: 0 to 1 would be read as black."""
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(
        UserError, match=r"image\.tif .*pixels are floats; accepted: integers of 8 or 16"
    ):
        Photo(tmp_path / "image.tif", "x").decode()


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_photograph_is_turned_as_its_tag_says(tmp_path, tag):
    """A tag of t means that the pixels were stored turned; seen upright, the red corner is at the top left."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4] = (255, 0, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[tag]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = tag
    path = tmp_path / "photo.png"
    image.save(path, exif=exif)
    photo = Photo(path, "a")
    assert photo.size == upright.shape[1::-1]
    assert np.array_equal(np.asarray(photo.decode()), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    path = tmp_path / "a.png"
    if mode == "P":
        paletted = Image.new("P", (4, 4), 1)
        paletted.putpalette([0, 0, 0, 9, 9, 9])
        paletted.paste(0, (0, 0, 2, 4))
        paletted.save(path, transparency=1)
    else:
        image.convert(mode).save(path)
    shown = np.asarray(Photo(path, "a").decode())
    assert (shown[:, :2] == 0).all()
    assert (shown[:, 2:] == 255).all()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_animations_show_their_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 0, 250))]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    red, _, blue = Photo(path, "a").decode().getpixel((4, 4))
    assert red > 200 > 50 > blue
