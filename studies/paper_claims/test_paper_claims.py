"""What log.md says of the paper's claims before training, and the neuron that it is measured with."""

import re
from pathlib import Path

import pytest
import torch

from spiketriton_kernels import Surrogate, use_backend
from spiketriton_kernels.nn import LIF
from studies.paper_claims import cut, run

ROWS = run.read()
PAGE = Path(__file__).with_name("log.md")


def test_the_table_and_the_sentences_are_those_of_the_rows():
    text = PAGE.read_text("utf-8")
    assert run.page(text, ROWS) == text
    cells = dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|", run.table(ROWS), re.M))
    items = re.findall(r"^\* \*\*\([bc]\)(?:.|\n  )*", text, re.M)
    assert len(items) == 2
    widths, time = (" ".join(item.split()) for item in items)
    for cell in ("width 0.1", "width 1"):
        assert f"{cells[cell]} times" in widths
    assert f"{float(cells['width 0.3']):.1f} times" in widths
    assert f"{cells['width 1, cut']} of the {cells['width 1']} remain" in time
    assert cells["width 1, cut"] == cells["width 1, T = 1"]


def test_each_cell_has_its_seeds():
    kept = {name: [row["seed"] for row in ROWS if row["cell"] == name] for name, _ in run.CELLS}
    assert set(map(tuple, kept.values())) == {tuple(map(str, run.SEEDS))}
    assert len(ROWS) == len(kept) * len(run.SEEDS)


@use_backend("torch")  # nothing has to compile
def test_the_cut_neuron_fires_as_lif_and_passes_no_gradient_to_earlier_steps():
    made = cut.Cut(2.0, Surrogate("atan", width=1.0))
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spikes = made(x)
    torch.testing.assert_close(spikes, LIF(tau=2.0, decay_input=False)(x))
    (through,) = torch.autograd.grad(spikes[3].sum(), x)
    assert through[3].abs().min() > 0
    assert not through[:3].any()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["4 2 1", "9 2 1"], "6"),
        (["1e-12 1", "1e-12 1"], "1e-12"),
        (["inf 1", "2 1"], "overflow"),
        (["5"], ""),
    ],
)
def test_growth_is_the_first_value_by_the_last(texts, said):
    assert run.growth(texts) == said
