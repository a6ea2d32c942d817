"""python tests/suites/run.py [FOLDER]: others' suites, fetched at fixed commits and run with our parts in place.

FOLDER (build/suites) keeps what was fetched. The last line counts; a skipped test fails the run, because all that it
could need is there. Without fetching, `pytest tests/suites` runs what needs none.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

SUITES = {
    "spikingjelly": (
        "https://github.com/fangwei123456/spikingjelly",
        "afb132264a8cbe38d0f221dcef04053e6ba134d3",
        ["test/activation_based"],
    ),
    "NIR": (
        "https://github.com/neuromorphs/NIR",
        "7232ada6d30e1beea78b180a5135b1a3bb3d3bc0",
        ["paper/01_lif", "paper/02_cnn"],
    ),
    "tonic": (
        "https://github.com/neuromorphs/tonic",
        "d0cb6df3ebfba018b9aac6d55f63576b46489609",
        ["test/test_data"],
    ),
}
"""Address, commit and the folders that are taken, by name."""
WRONG = ("failures", "errors", "skipped")  # as pytest counts them


def fetch(folder: Path) -> None:
    """Checks out what is missing, and says what cannot be fetched."""
    for name, (address, commit, parts) in SUITES.items():
        if (folder / name).exists():
            continue
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        git = ["git", "-C", str(part)]
        few = ["--quiet", "--filter=blob:none", "--no-checkout"]
        try:
            subprocess.run(["git", "clone", *few, address, str(part)], check=True)
            subprocess.run([*git, "sparse-checkout", "set", *parts], check=True)
            subprocess.run([*git, "checkout", "--quiet", commit], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} is not fetched, and its tests are skipped: {error}", flush=True)
        else:
            part.rename(folder / name)


def fetched(name: str) -> Path:
    """A file of the suites, for a test, which is skipped where it is not there."""
    path = Path(os.environ.get("SUITES", "not fetched"), name)
    if not path.is_file():
        pytest.skip(f"{name} is not here: python tests/suites/run.py fetches it")
    return path


if __name__ == "__main__":
    here = Path(__file__).parent
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/suites").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder)
    report = folder / "results.xml"
    words = ["-rs", "-s", "--slow", "--numprocesses=0", f"--junitxml={report}", str(here)]
    command = [sys.executable, "-m", "pytest", *words]
    code = subprocess.run(command, env={**os.environ, "SUITES": str(folder)}).returncode
    suite = next(ElementTree.parse(report).iter("testsuite"))
    tests, *wrong = (int(suite.get(n, 0)) for n in ("tests", *WRONG))
    counted = ", ".join(f"{n} {what}" for n, what in zip(wrong, WRONG, strict=True))
    print(f"others' suites: {tests - sum(wrong)} passed, {counted}")
    sys.exit(code or min(sum(wrong), 1))
