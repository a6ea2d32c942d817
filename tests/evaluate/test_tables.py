"""Tables and sentences of evaluations: every column recomputed from what was counted."""

from dataclasses import replace

import pytest

from spiketriton.evaluate.results import Evaluation
from spiketriton.evaluate.tables import (
    chosen_steps,
    layers_table,
    overtakes,
    steps_table,
    verdict,
)
from tests.show.support import ann, evaluation


def row(one: Evaluation, t: int) -> dict[str, str]:
    table = steps_table([one])
    (cells,) = (row for row in table.rows if row[1].split()[0] == str(t))
    return dict(zip(table.head, cells, strict=True))


def test_the_columns_of_a_time_step():
    """2 steps: 2 M AC at synapses, 0.5 M + 2 * 0.02 M MAC, and 2 * 1,000 membranes."""
    assert row(evaluation(), 2) == {
        "run": "net (lif)", "T": "2", "accuracy %": "62.50", "95 %": "52.5-72.5", "million AC": "2.000",
        "million MAC": "0.542", "µJ": "2.50", "µJ with data": "20.00", "images/s": "",
    }  # fmt: skip
    assert row(evaluation(), 3)["images/s"] == "1234"
    leakless = row(evaluation(leaky=False, neuron="if"), 2)
    assert (leakless["million AC"], leakless["million MAC"]) == ("2.002", "0.540")
    twin = row(ann(), 1)
    assert [twin[key] for key in ("run", "million AC")] == ["twin (ANN)", "0.000"]
    assert twin["million MAC"] == "10.000"
    assert twin["images/s"] == "1234"


def test_recordings_are_no_images_and_last_milliseconds():
    one = evaluation(events=True, ms_per_step=50.4)
    assert row(one, 2)["T"] == "2 (101 ms)"
    assert row(one, 3)["recordings/s"] == "1234"
    assert row(evaluation(events=True), 2)["T"] == "2"  # bins of equally many events
    words = steps_table([one]).legend + layers_table(one).legend
    assert "milliseconds of a recording" in words
    assert "image" not in words
    assert "milliseconds" not in steps_table([evaluation()]).legend
    assert "other such images" in steps_table([evaluation()]).legend


@pytest.mark.parametrize(
    ("counts", "tested"),
    [
        ({}, "1,000 test images"),  # how many there are was not recorded
        ({"available": 1000}, "1,000 test images"),
        ({"available": 1001}, "1,000 of 1,001 test images"),
        ({"available": 2000, "events": True}, "1,000 of 2,000 test recordings"),
    ],
)
def test_a_part_of_the_test_images_is_said_to_be_one_and_all_of_them_are_not(counts, tested):
    assert evaluation(**counts).tested == tested


def test_the_columns_of_a_layer():
    one = evaluation()
    table = layers_table(one)
    first, second = (dict(zip(table.head, cells, strict=True)) for cells in table.rows)
    assert first == {
        "layer": "first", "neurons": "100", "rate %": "25.00", "first step": "12.50",
        "last step": "37.50", "never %": "5.0", "always %": "10.0", "million AC": "2.000",
    }  # fmt: skip
    assert (second["never %"], second["always %"], second["million AC"]) == ("5.0", "0.0", "1.000")
    assert "active %" in layers_table(ann()).head


@pytest.mark.parametrize(
    ("steps", "time_steps", "asked", "chosen"),
    [
        (4, 3, [], [1, 2, 3, 4]),
        (16, 4, [], list(range(1, 17))),
        (17, 4, [], [1, 2, 4, 8, 16, 17]),
        (40, 5, [], [1, 2, 4, 5, 8, 16, 32, 40]),
        (64, 8, [], [1, 2, 4, 8, 16, 32, 64]),
        (4, 3, [1, 9], [1, 3]),
        (1, 1, [8], [1]),
    ],
)
def test_the_time_steps_worth_a_row(steps, time_steps, asked, chosen):
    one = evaluation(values=[0.5] * steps, time_steps=time_steps)
    assert chosen_steps(one, asked) == chosen


def test_a_verdict_divides_by_the_energy_of_the_twin():
    """At T: 4.6 of 10 M * 4.6 pJ = 46 µJ; with data 36.5 of 10 M * (4.6 + 2 * 5) pJ = 146 µJ."""
    one, twin = evaluation(), ann()
    assert verdict(one, [one]) == (
        "net (lif): at T = 3 it takes 0.100 of its ANN twin's energy by operations, 0.250 with "
        "data movement. A neuron spikes 32.1 times in 100 steps. Against an ANN whose "
        "activations are quantised, and with a finer model of the same movement, another study finds "
        "that a spiking net saves energy below 5.7 to 6.4 % (Yan et al. 2024, T = 5)."
    )
    assert verdict(twin, [twin]) == "twin (ANN): 10.000 million MAC, 46.00 µJ per image."


def test_the_first_run_is_compared_with_all_and_others_with_it_and_with_anns():
    first, twin, other = evaluation(), ann(), evaluation(run="runs/other", neuron="if")
    runs = [first, twin, other]
    assert [word in verdict(first, runs) for word in ("twin (ANN)", "other (if)")] == [True, True]
    assert [word in verdict(other, runs) for word in ("twin (ANN)", "net (lif)")] == [True, True]
    assert ["Yan" in verdict(one, runs) for one in (first, other)] == [True, False]  # said once
    third = evaluation(run="runs/third")
    assert "third" not in verdict(other, [*runs, third])


def test_when_a_run_reaches_another():
    one, twin = evaluation(), ann()
    assert overtakes(one, twin) == "It reaches twin (ANN) (76.00 %) at 4 steps."
    near = replace(one, values=[0.5, 0.75, 0.755, 0.5])
    assert overtakes(near, twin) == "It comes within 1 point of twin (ANN) (76.00 %) at 2 steps."
    below = replace(one, values=[0.7, 0.74, 0.749, 0.7])
    assert overtakes(below, twin) == (
        "It stays more than 1 point below twin (ANN) (76.00 %) in 4 steps."
    )
    assert overtakes(one, one).endswith("(75.00 %) at 3 steps.")  # at its own T
    assert overtakes(one, replace(one, values=[0.0] * 4)).endswith("at 1 step.")
