"""Meters: means, speed and waiting between two rows."""

import math
import re
from pathlib import Path

import pytest
import torch

from spiketriton.training.meters import Meters, peak_memory_mib


def test_meters_count_what_was_between_two_rows(monkeypatch):
    clock = iter(float(t) for t in (0, 2, 12, 20, 21, 24, 30, 34, 35, 36))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meters = Meters(torch.device("cpu"))  # at 0
    meters.step(
        8, torch.tensor(3.0), torch.tensor(5.0)
    )  # compiled from 0 to 2; measuring starts at 12
    with meters.waiting():  # 20 to 21
        pass
    with meters.aside():  # 24 to 30: a test
        pass
    meters.step(8, torch.tensor(1.0), torch.tensor(7.0))
    assert meters.state_dict() == {"loss": 4.0, "steps": 2, "left_out": 0}
    row = meters.read()  # at 34: 22 s since 12, less 6
    assert row == {"loss": 2.0, "grad_norm": 7.0, "images_per_s": 8 / 16, "data_wait": 1 / 16}
    assert meters.state_dict() == {"loss": 0.0, "steps": 0, "left_out": 0}


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean():
    meters = Meters(torch.device("cpu"))
    assert math.isnan(meters.peek()[0])
    for loss in (1.0, math.nan, 4.0, math.inf):
        meters.step(8, torch.tensor(loss), torch.tensor(loss))
    assert meters.peek() == (2.5, math.inf)
    assert meters.state_dict() == {"loss": 5.0, "steps": 4, "left_out": 2}
    resumed = Meters(torch.device("cpu"))
    resumed.load_state_dict(meters.state_dict())
    resumed.step(8, torch.tensor(1.0), torch.tensor(3.0))
    assert resumed.peek() == (2.0, 3.0)
    assert resumed.read()["loss"] == 2.0
    assert resumed.state_dict() == {"loss": 0.0, "steps": 0, "left_out": 0}


def test_a_session_of_one_step_has_its_speed(monkeypatch):
    clock = iter(float(t) for t in (0, 1, 3, 5, 5, 20, 20))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meters = Meters(torch.device("cpu"))  # at 0
    with meters.waiting():  # 1 to 3
        pass
    meters.step(10, torch.tensor(1.0), torch.tensor(1.0))  # at 5
    row = meters.read()  # at 20
    assert (row["images_per_s"], row["data_wait"]) == (10 / 5, 2 / 5)


def test_peak_memory_is_that_of_this_process_in_mib():
    peak = peak_memory_mib(torch.device("cpu"))
    kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak == pytest.approx(kib / 1024, rel=0.05)
