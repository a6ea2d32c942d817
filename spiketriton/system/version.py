"""The version of this package and where it lies, below all that tells it."""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).resolve().parents[1]


def other_kernels(package: Path = PACKAGE) -> str:
    """What is wrong with the kernels beside a wheel of this package: another commit's lie over its own. "": nothing.

    A checkout says no commit, and is taken with any.
    """
    kernels = find_spec("spiketriton_kernels")
    if kernels is None or kernels.origin is None:
        return ""
    files = package / "commit.txt", Path(kernels.origin).parent / "commit.txt"  # hatch_build.py
    if not all(file.is_file() for file in files):
        return ""
    ours, theirs = (file.read_text().strip() for file in files)
    if ours == theirs:
        return ""
    return (
        f"spiketriton is of commit {ours[:7]}, and the spiketriton_kernels in {files[1].parent} are of {theirs[:7]}; "
        "accepted: both of one commit, as its wheel brings them (pip uninstall spiketriton-kernels, and then install "
        "spiketriton with --force-reinstall)"
    )
