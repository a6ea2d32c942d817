"""`spoken_digits`: 3,000 recordings of ten digits by six speakers (Free Spoken Digit Dataset, CC BY-SA 4.0).

    git clone --depth 1 https://github.com/Jakobovski/free-spoken-digit-dataset data/spoken_digits

A recording, `digit_speaker_take.wav` at 8 kHz, is a sequence of frames of 40 log-mel values, one each 10 ms.
"""

import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.config.words import some
from spiketriton.data.download import data_root
from spiketriton.data.sequences import SequenceSplit
from spiketriton.data.sources import Recorded, Source
from spiketriton.system.errors import UserError, one_line

ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset"
RATE = 8000  # samples a second
WINDOW, HOP, BANDS = 200, 80, 40  # samples of a frame, and from one frame to the next: 25 and 10 ms
FFT = 256
FLOOR = 1e-6  # of an energy, where samples are from -1 to 1: silence of 16 bits
TESTED = 5  # takes 0 to 4 of each speaker and digit


class Take(NamedTuple):
    path: Path
    digit: int
    speaker: str
    number: int


@plugins.data("spoken_digits")
def spoken_digits(config: DataConfig) -> "Spoken":
    """Its recordings in data.root/spoken_digits, the clone or its folder `recordings`, or in data.root itself."""
    root = data_root(config)
    for place in (
        root / "spoken_digits" / "recordings",
        root / "spoken_digits",
        root / "recordings",
        root,
    ):
        if takes := sorted(_takes(place)):
            return Spoken(takes)
    raise UserError(
        f"spoken_digits: no recording (such as 0_george_0.wav) in {root / 'spoken_digits'}; "
        f"git clone --depth 1 {ADDRESS} {root / 'spoken_digits'}, or set data.root to the folder that holds it"
    )


def _takes(folder: Path) -> list[Take]:
    found = []
    for path in folder.glob("*.wav"):
        if known := re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem):
            found.append(Take(path, int(known[1]), known[2], int(known[3])))
    return found


@dataclass(frozen=True)
class Spoken(Recorded):
    """The recordings, ordered by name."""

    takes: Sequence[Take]

    def source(self, config: DataConfig, steps: int) -> Source:
        """Their first `steps` frames. UserError: no such speaker, a damaged file, nothing to train or test on."""
        tested = [self._tests(take, config.split) for take in self.takes]
        sequences = [log_mel(take.path) for take in self.takes]
        long = sum(len(one) > steps for one in sequences)
        splits = []
        for part in (False, True):
            chosen = [i for i, test in enumerate(tested) if test == part]
            if not chosen:
                what = "test" if part else "training"
                raise UserError(
                    f"spoken_digits: no {what} recording with data.split = {config.split!r}"
                )
            frames = [sequences[i][:steps] for i in chosen]
            splits.append(SequenceSplit(frames, [self.takes[i].digit for i in chosen]))
        note = f"{long} of {len(self.takes):,} recordings are longer than {steps} frames of 10 ms, and cut there"
        return Source(
            train=splits[0],
            test=splits[1],
            classes=tuple("0123456789"),
            split=config.split_words,
            place=self.takes[0].path.parent,
            note=note if long else "",
        )

    def _tests(self, take: Take, split: str) -> bool:
        if split == "official":
            return take.number < TESTED
        speakers = sorted({one.speaker for one in self.takes})
        if (name := split.removeprefix("speaker:")) not in speakers:
            raise UserError(
                f'data.split = "{split}": there is no such speaker; accepted: speaker: and one of {some(speakers, 20)}'
            )
        return take.speaker == name


def log_mel(path: Path) -> Tensor:
    """The frames of a recording, float32 [T, 40]: the logarithms of the energies of triangular bands of the mel scale.

    A frame is 25 ms, the next one begins 10 ms later; the first is centred on the first sample. UserError: the file is
    damaged, or no mono of 16 bits at 8 kHz.
    """
    samples = _samples(path)
    spectrum = torch.stft(
        samples,
        FFT,
        HOP,
        WINDOW,
        torch.hann_window(WINDOW),
        pad_mode="constant",
        return_complex=True,
    )
    energies = bands() @ spectrum.abs().square()
    return energies.add_(FLOOR).log_().T.contiguous()


def _samples(path: Path) -> Tensor:
    """From -1 to 1."""
    try:
        with wave.open(str(path)) as file:
            found = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            count = file.getnframes()
            raw = file.readframes(count)
    except (OSError, wave.Error, EOFError) as error:
        raise UserError(
            f"{path} cannot be read: {one_line(error) or 'it ends before its first sample'}"
        ) from None
    if found != (1, 16, RATE) or not count:
        channels = f"{found[0]} channel{'s' * (found[0] != 1)}"
        raise UserError(
            f"{path} has {channels} of {found[1]} bits at {found[2]:,} Hz and {count:,} samples; accepted: mono of 16 "
            f"bits at {RATE:,} Hz (ffmpeg -i {path.name} -ac 1 -ar {RATE} -c:a pcm_s16le NEW.wav)"
        )
    if len(raw) < 2 * count:
        raise UserError(f"{path} is cut off: it says {count:,} samples and has {len(raw) // 2:,}")
    return torch.from_numpy(np.frombuffer(raw, "<i2").astype(np.float32)) / 32768


@cache
def bands() -> Tensor:
    """The weights of the bands, float32 [40, 129]: triangles whose corners are evenly spaced in mel (O'Shaughnessy
    1987), 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    low, middle, high = (corners[i : i + BANDS, None] for i in range(3))
    f = np.linspace(0, RATE / 2, FFT // 2 + 1)
    rising, falling = (f - low) / (middle - low), (high - f) / (high - middle)
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))
