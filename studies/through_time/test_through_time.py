"""The registered nets, what was said of them, and the limits that the verdict takes from them."""

import pytest
import torch

import spiketriton
from spiketriton.diagnose.modules import Called
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.verdict import LIMITS
from studies.through_time import nets, run

REGISTER = run.read(run.REGISTER)


def test_the_register_is_what_the_seed_draws():
    drawn = [
        {key: run._value(str(value)) for key, value in row.items()} for row in run.registered()
    ]
    assert drawn == REGISTER
    assert len({row["id"] for row in REGISTER}) == 972


def test_the_page_is_that_of_the_rows(monkeypatch):
    text, docs = run.PAGE.read_text("utf-8"), run.DOCS.read_text("utf-8")
    assert run.page(text) == text
    assert run.gradient_flow(docs) == docs
    monkeypatch.setattr(run, "LIMITS", {"states": 0.5, "windows": 0.0, "feedback": 0.0})
    assert run.page(text) != text


def test_the_limits_are_those_of_the_rows_and_their_counts_of_those_that_chose_nothing():
    assert {kind: found.limit for kind, found in LIMITS.memory.items()} == run.LIMITS
    fitted = run.nets_of(run.PULSES, "fitted")
    assert run.chosen(fitted) == pytest.approx(LIMITS.memory["states"].limit)
    assert run.chosen_of_recurrent() == LIMITS.memory["feedback"].limit
    assert run.chosen_of_kept() == run.KEPT == LIMITS.kept.limit
    assert LIMITS.kept[1:3] == run.beyond("vanishing", "feedback", run.KEPT)
    assert {kind: run.chosen_of_growth(kind) for kind in run.BURST} == run.BURST
    for kind, found in LIMITS.memory.items():
        assert (found.learnt, found.trainings) == run.beyond("vanishing", memory=kind), kind
    assert {name: found.limit for name, found in LIMITS.burst.items()} == run.BURST
    for name, found in LIMITS.burst.items():
        assert (found.learnt, found.trainings) == run.beyond("exploding", memory=name), name


@pytest.mark.parametrize("index", [0, 1, 3, 5, 11, 14, 40])
def test_a_net_is_what_its_row_says_and_is_judged_so(index):
    row = REGISTER[index] | {"T": 12, "width": 16, "batch": 6}
    net = nets.Net(row | ({"order": 4} if row["order"] else {}))
    x, y = nets.pulse(row)[0](6, torch.Generator().manual_seed(0))
    assert x.shape == (12, 6, 32)
    assert net(x).shape == (6, 4)
    called = Called(net, 4, timed=True)
    called.recognise(x, 6)
    loss = torch.nn.functional.cross_entropy
    assert Prober(called, [(x, y)], loss, images=1).memory() == run.remembers_by(row)
    said = spiketriton.diagnose(net, (x, y), time_first=True, tries=0).verdict.through
    kind = run.remembers_by(row)
    assert said.judged == LIMITS.memory.get(kind)


def test_a_pulse_is_at_the_beginning_or_at_the_end():
    row = REGISTER[0] | {"T": 30}
    for at_end in (False, True):
        x, _ = nets.pulse(row, at_end)[0](500, torch.Generator().manual_seed(0))
        loud = x.square().mean((1, 2)) > 0.6
        assert loud.nonzero().flatten().tolist() == ([26, 27, 28, 29] if at_end else [0, 1, 2, 3])
