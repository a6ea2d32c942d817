"""What log.md says of the paper's claims, and the neuron that those before training are measured with."""

import re
from pathlib import Path

import pytest
import torch

from spiketriton_kernels import Surrogate, use_backend
from spiketriton_kernels.nn import LIF
from studies.paper_claims import cut, run

ROWS = run.read()
PAGE = Path(__file__).with_name("log.md")


def test_the_tables_are_those_of_the_rows():
    text = PAGE.read_text("utf-8")
    assert run.page(text, ROWS) == text
    cells = dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|", run.table(ROWS), re.M))
    assert (
        run.value_of("cell: width 1, cut", ROWS) == cells["width 1, cut"] == cells["width 1, T = 1"]
    )
    measured = {row["name"]: row for row in run.read(run.MEASURED)}
    named = {
        source.partition(": ")[2]
        for *_, of in run.CLAIMS
        for _, source in of
        if "measured" in source
    }
    assert set(measured) == named
    assert all(row["command"] and float(row["value"]) for row in measured.values())
    with pytest.raises(KeyError, match="another"):
        run.value_of("measured: another", ROWS)


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
