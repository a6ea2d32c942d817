"""The version of this package and where it lies, below all that tells it."""

from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).resolve().parents[1]
