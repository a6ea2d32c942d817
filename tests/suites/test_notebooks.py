"""The notebooks of examples/ run from top to bottom, and what they hold is small and of no machine."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra suites is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra suites is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_small_and_was_run(path):
    text = path.read_text("utf-8")
    assert len(text) < 150_000
    for word in (str(Path.home()), "/tmp/", '"output_type": "error"'):
        assert word not in text
    cells = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    if path.stem == "swap_spikingjelly":
        pytest.importorskip("spikingjelly")
    places = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    book = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, resources=resources).execute()
    assert not list(path.parent.glob("runs"))
