"""Data sets of sequences and MNIST, read from small copies in the layout of the real files."""

import gzip
import math

import numpy as np
import pytest
import torch
from PIL import Image

from spiketriton.config import recipe_from_toml
from spiketriton.data import build_data
from spiketriton.data.given import given_images
from spiketriton.data.spoken_digits import BANDS, FFT, HOP, RATE, bands, log_mel
from spiketriton.system.errors import UserError
from tests.small_data import all_of, make_fashion_mnist, mentions, mistake
from tests.small_sequences import write_wav

h5py = pytest.importorskip("h5py")


def recipe(name, root, steps=20, *, data="", model="sequence"):
    return recipe_from_toml(
        f'time_steps = {steps}\n[data]\nname = "{name}"\nroot = "{root}"\nworkers = 0\n{data}\n'
        f'[model]\nname = "{model}"\n[train]\nbatch_size = 4\n',
        "test",
    )


def tone(hertz, seconds=0.15, loud=0.5):
    return loud * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


def spoken(root, folder="spoken_digits/recordings", takes=7, speakers=("ann", "bob")):
    for digit in range(10):
        for speaker in speakers:
            for take in range(takes):
                name = f"{digit}_{speaker}_{take}.wav"
                write_wav(root / folder / name, tone(200 + 150 * digit, 0.1 + 0.01 * take))


@pytest.mark.parametrize("folder", ["spoken_digits/recordings", "spoken_digits", "recordings", "."])
def test_spoken_digits_are_found_and_split_by_take(tmp_path, folder):
    spoken(tmp_path, folder)
    (tmp_path / folder / "notes.wav").write_bytes(b"none of its business")
    data = build_data(recipe("spoken_digits", tmp_path))
    assert (data.train.images, data.test.images) == (40, 100)
    assert data.facts.image_shape == (BANDS,)
    assert data.classes == tuple("0123456789")
    assert data.facts.padded
    split = data.test.dataset.split
    assert split.labels.tolist() == sorted(split.labels.tolist())
    first = log_mel(tmp_path / folder / "0_ann_0.wav")
    assert torch.equal(split.read(np.array([0]))[0], first)
    assert data.label == "spoken_digits (split official)"


def test_a_speaker_is_left_out(tmp_path):
    spoken(tmp_path)
    data = build_data(recipe("spoken_digits", tmp_path, data='split = "speaker:bob"'))
    assert (data.train.images, data.test.images) == (70, 70)
    assert data.label == "spoken_digits (split speaker:bob)"
    wrong = recipe("spoken_digits", tmp_path, data='split = "speaker:eve"')
    mentions(mistake(wrong), "speaker:eve", "ann, bob")
    with pytest.raises(UserError, match=r'accepted with it: "official", or "speaker:NAME"'):
        recipe("spoken_digits", tmp_path, data='split = "random90"')


def test_long_recordings_are_cut_and_said(tmp_path):
    spoken(tmp_path)
    data = build_data(recipe("spoken_digits", tmp_path, steps=12))
    assert "100 of 140 recordings are longer than 12 frames of 10 ms, and cut there" in data.note
    assert int(data.test.dataset.split.lengths.max()) == 12
    path = tmp_path / "spoken_digits" / "recordings" / "0_ann_6.wav"
    with pytest.warns(UserWarning, match=r"0_ann_6\.wav has 17 frames of 10 ms: the first 12"):
        given, _ = given_images(str(path), data.facts, 2, recipe("spoken_digits", tmp_path).data)
    (batch, *_), *_ = given
    assert len(batch) == 12


def test_missing_recordings_name_their_address(tmp_path):
    mentions(
        mistake(recipe("spoken_digits", tmp_path)),
        "git clone --depth 1 https://github.com/Jakobovski/free-spoken-digit-dataset",
        tmp_path / "spoken_digits",
    )


WRONG = {
    "stereo": ({"channels": 2}, "has 2 channels of 16 bits"),
    "rate": ({"rate": 16_000}, r"1 channel of 16 bits at 16,000 Hz.*ffmpeg -i 0_ann_0\.wav"),
    "8 bits": ({"width": 1}, "of 8 bits at 8,000 Hz"),
    "empty": ({}, "and 0 samples"),
    "text": ({}, "cannot be read"),
    "cut": ({}, r"is cut off: it says 1,200 samples and has 100"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_recording_of_another_kind_is_named(tmp_path, how):
    path, (options, words) = tmp_path / "0_ann_0.wav", WRONG[how]
    write_wav(path, tone(300) if how != "empty" else np.zeros(0), **options)
    if how == "text":
        path.write_text("no sound")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: 44 + 200])
    with pytest.raises(UserError, match=rf"0_ann_0\.wav.*{words}"):
        log_mel(path)


def test_log_mel_is_the_energy_of_its_bands(tmp_path):
    """By the definition: a window, its Fourier transform, triangles whose corners are even in mel."""
    rng = np.random.default_rng(0)
    samples = 0.3 * rng.standard_normal(1000).clip(-1, 1)
    frames = log_mel(write_wav(tmp_path / "x.wav", samples))
    assert frames.shape == (1 + 1000 // HOP, BANDS)
    whole = np.concatenate(
        [np.zeros(FFT // 2), (32767 * samples).astype(int) / 32768, np.zeros(FFT // 2)]
    )
    window = np.zeros(FFT)
    window[28:228] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    for t in (0, 5, 12):
        power = np.abs(np.fft.rfft(window * whole[t * HOP : t * HOP + FFT])) ** 2
        corners = np.linspace(0, mel(4000), BANDS + 2)
        for band in (0, 17, 39):
            low, middle, high = (700 * (10 ** (m / 2595) - 1) for m in corners[band : band + 3])
            energy = 0.0
            for k, value in enumerate(power):
                f = k * RATE / FFT
                energy += value * max(
                    0.0, min((f - low) / (middle - low), (high - f) / (high - middle))
                )
            assert float(frames[t, band]) == pytest.approx(math.log(energy + 1e-6), abs=2e-3)
    assert bands().shape == (BANDS, FFT // 2 + 1)


def make_spikes(path, count, *, seed=0, layout=True, keys=True):
    """A file as those of SHD and SSC: variable-length arrays of seconds (float16) and channels."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        times = spikes.create_dataset("times", (count,), h5py.vlen_dtype(np.float16))
        units = spikes.create_dataset("units", (count,), h5py.vlen_dtype(np.uint16))
        for i in range(count):
            n = int(rng.integers(5, 40))
            times[i] = np.sort(rng.random(n) * 1.3).astype(np.float16)
            units[i] = rng.integers(0, 700, n).astype(np.uint16)
        if layout:
            file["labels"] = (np.arange(count) % 4).astype(np.uint16)
        if keys:
            file["extra/keys"] = np.array([b"zero", b"one", b"two", b"three"])


@pytest.mark.parametrize("name", ["shd", "ssc"])
def test_spikes_are_binned_by_time_and_channel(tmp_path, name):
    parts = {"train": 12, "test": 6, **({"valid": 5} if name == "ssc" else {})}
    folder = tmp_path / name
    folder.mkdir()
    for seed, (part, count) in enumerate(parts.items()):
        make_spikes(folder / f"{name}_{part}.h5", count, seed=seed)
    data = build_data(recipe(name, tmp_path, steps=7))
    assert (data.train.images, data.test.images) == (12, 6)
    assert (data.validation and data.validation.images) == (5 if name == "ssc" else None)
    assert data.classes == ("zero", "one", "two", "three")
    assert not data.facts.padded
    images, labels = all_of([(x.transpose(0, 1), y) for x, y in data.test])
    assert images.shape == (6, 7, 700)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    width = {"shd": 1.4, "ssc": 1.0}[name] / 7
    with h5py.File(folder / f"{name}_test.h5") as file:
        expected = np.zeros((6, 7, 700))
        for i in range(6):
            for t, unit in zip(file["spikes/times"][i], file["spikes/units"][i], strict=True):
                if float(t) < 7 * width:
                    expected[i, int(float(t) / width), unit] += 1
    assert np.array_equal(images.numpy(), expected)


def test_spikes_are_read_by_workers(tmp_path):
    for part in ("train", "test"):
        make_spikes(tmp_path / f"shd_{part}.h5", 8)
    here = build_data(recipe("shd", tmp_path, steps=5))
    there = build_data(recipe("shd", tmp_path, steps=5))
    list(here.test)  # the file is open now, and a worker opens its own
    object.__setattr__(there.test.loading, "workers", 1)
    for ours, theirs in zip(here.test, there.test, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_missing_and_damaged_files_of_spikes_are_named(tmp_path):
    message = mistake(recipe("shd", tmp_path))
    mentions(message, "shd_train.h5", "https://zenkelab.org/datasets/shd_train.h5.gz", "gunzip")
    (tmp_path / "shd_train.h5.gz").write_bytes(gzip.compress(b"x"))
    mentions(mistake(recipe("shd", tmp_path)), "compressed", "gunzip")
    make_spikes(tmp_path / "shd_train.h5", 4, layout=False)
    make_spikes(tmp_path / "shd_test.h5", 4)
    mentions(mistake(recipe("shd", tmp_path)), "shd_train.h5", "labels")
    (tmp_path / "shd_train.h5").write_bytes(b"no HDF5")
    mentions(mistake(recipe("shd", tmp_path)), "shd_train.h5", "cannot be read")
    make_spikes(tmp_path / "shd_train.h5", 4, keys=False)
    assert build_data(recipe("shd", tmp_path)).classes == ("0", "1", "2", "3")


def test_mnist_is_read_from_class_folders_and_from_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 10, 28, 28), dtype=np.uint8)
    for place, images in zip(("train", "test"), pixels, strict=True):
        for digit, image in enumerate(images):
            (tmp_path / "a" / "mnist" / place / str(digit)).mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / "a" / "mnist" / place / str(digit) / "0.png")
    data = build_data(recipe("mnist", tmp_path / "a", model="resnet8"))
    assert (data.channels, data.image_size, data.classes) == (1, 28, tuple("0123456789"))
    assert np.array_equal(data.test.dataset.split.read(np.arange(10))[:, 0].numpy(), pixels[1])
    make_fashion_mnist(tmp_path / "b", 20)
    data = build_data(recipe("mnist", tmp_path / "b", model="resnet8"))
    assert (data.train.images, data.classes) == (20, tuple("0123456789"))
    message = mistake(recipe("mnist", tmp_path / "c", model="resnet8", data="download = false"))
    mentions(message, "train-images-idx3-ubyte")
    (tmp_path / "a" / "mnist" / "train" / "x").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "a" / "mnist" / "train" / "x" / "0.png")
    assert "different classes" in mistake(recipe("mnist", tmp_path / "a", model="resnet8"))
