"""`tiny_imagenet`: 100,000 + 10,000 images of 64x64 pixels in 200 classes of ImageNet (Le and Yang 2015).

The layout is that of its archive, tiny-imagenet-200.zip, whose images are JPEGs, 1 to 2 % of them grey. Its 10,000
images with labels in `val` are tested, as everybody does; those in `test` have no labels. Mean and deviation are those
of the training images in 0..1, in common use.
"""

from pathlib import Path

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.config.words import some
from spiketriton.data.decoded import in_memory
from spiketriton.data.download import RemoteFile, data_root, unpacked
from spiketriton.data.photographs import class_files, is_image, of_splits
from spiketriton.data.sources import Source
from spiketriton.data.splits import FileSplit
from spiketriton.system.errors import UserError

STATISTICS = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
ARCHIVE = RemoteFile(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
)
_FOLDER = ARCHIVE.name.removesuffix(".zip")
ANNOTATIONS = "val_annotations.txt"


@plugins.data("tiny_imagenet")
def tiny_imagenet(config: DataConfig) -> Source:
    """From data.root/tiny_imagenet, data.root/tiny-imagenet-200 or data.root itself, or downloaded."""
    root = data_root(config)
    places = (root / config.name / _FOLDER, root / config.name, root / _FOLDER, root)
    # data.root itself may hold the folders of another data set, so that its val must be this one's
    found = next((place for place in places[:3] if (place / "train").is_dir()), None)
    if found is None and (root / "val" / ANNOTATIONS).is_file():
        found = root
    folder = found or unpacked(ARCHIVE, _FOLDER, config)
    train = class_files(folder / "train", config)
    test = _tested(folder / "val", train.classes, config)
    names = _names(folder / "words.txt", train.classes)
    train.classes = test.classes = names
    return in_memory(of_splits(train, test), config, image_size=64, statistics=STATISTICS)


def _tested(folder: Path, classes: tuple[str, ...], config: DataConfig) -> FileSplit:
    """The images that val_annotations.txt names, each with its class: FILE, tab, WNID, tab, a box.

    UserError: the file is missing or names an image or a class that is not there, or fewer images than there are.
    """
    path, images = folder / ANNOTATIONS, folder / "images"
    try:
        lines = path.read_text().splitlines()
        files = {place.name for place in images.iterdir() if is_image(str(place))}
    except OSError as error:
        raise UserError(
            f"{config.name}: {error.filename} cannot be read ({error.strerror}); accepted: the layout of "
            f"{ARCHIVE.name}, with val/images and val/{ANNOTATIONS}"
        ) from error
    index = {name: at for at, name in enumerate(classes)}
    samples = []
    for number, line in enumerate(lines, 1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if file not in files or wnid not in index:
            what = (
                f"no image {images / file}" if file not in files else f"no class {wnid!r} in train"
            )
            raise UserError(f"{config.name}: {path}, line {number}: {what}")
        samples.append((str(images / file), index[wnid]))
    if left := sorted(files - {Path(name).name for name, _ in samples}):
        raise UserError(f"{config.name}: {path} has no line for {some(left)} of {images}")
    return FileSplit(samples, classes)


def _names(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first word of words.txt for each WNID; the WNID beside it where two classes have the same, or alone where
    there is none."""
    words = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            wnid, _, names = line.partition("\t")
            words[wnid] = names.partition(",")[0].strip()
    first = [words.get(wnid) or wnid for wnid in wnids]
    return tuple(
        name if first.count(name) == 1 else f"{name} ({wnid})"
        for name, wnid in zip(first, wnids, strict=True)
    )
