"""Folders of images as people have them: turned by EXIF, transparent, animated, with hidden folders beside."""

import numpy as np
import pytest
from PIL import Image

from spiketriton.data import build_data
from spiketriton.data.splits import Photo
from tests.small_data import data_recipe, make_class_tree

ORIENTATION = 0x0112


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
    exif[ORIENTATION] = tag
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
