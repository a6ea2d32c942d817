"""Who is sampled when, how often, and what is made of the samples."""

from dataclasses import replace

import pytest
import torch

from profiling.harness import timing
from profiling.harness.timing import (
    QUICK,
    Effort,
    Timed,
    Timing,
    buffers_beyond_cache,
    last_level_cache,
    race,
)

CPU = torch.device("cpu")


class Scripted(Timed):
    """A contender whose samples are known, and who writes down its turns."""

    def __init__(self, name: str, turns: list[str], seconds: float) -> None:
        self.name, self.turns, self.seconds = name, turns, seconds

    def sample(self) -> float:
        self.turns.append(self.name)
        return self.seconds


def test_contenders_take_turns_and_the_first_changes():
    turns: list[str] = []
    timings = race({name: Scripted(name, turns, i) for i, name in enumerate("abc")}, QUICK)
    assert "".join(turns) == "abcbcacab"
    assert timings["c"].seconds == (2, 2, 2)


@pytest.mark.parametrize(("least", "patience", "samples"), [(2, 0, 2), (9, 0, 9), (2, 60, 9)])
def test_a_slow_case_ends_early_but_not_too_early(least, patience, samples):
    effort = Effort(rounds=9, seconds=0, warm_up=0, least=least, patience=patience)
    assert len(race({"a": Scripted("a", [], 1.0)}, effort)["a"].seconds) == samples


def test_the_garbage_collector_sleeps_during_a_race_and_wakes_up_even_after_an_error():
    import gc

    class Failing(Timed):
        def sample(self) -> float:
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        race({"a": Failing()}, QUICK)
    assert gc.isenabled()


class Clocked(Timed):
    """Each call takes 10 ms on a clock that only it moves; the first takes a second."""

    device = CPU

    def __init__(self, monkeypatch) -> None:
        self.now, self.called = 0.0, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def __call__(self) -> None:
        self.now += 0.01 if self.called else 1.0
        self.called += 1


def test_a_sample_is_filled_after_the_warm_up(monkeypatch):
    work = Clocked(monkeypatch)
    work.prepare(Effort(rounds=1, seconds=0.045, warm_up=0.095))
    assert work.called == 11  # the one that compiles, then 10 of 10 ms
    assert work.calls == 5  # 45 ms take 5 calls of 10 ms
    assert work.sample() == pytest.approx(0.01)
    assert work.called == 16
    work = Clocked(monkeypatch)
    work.prepare(QUICK)
    assert (work.called, work.calls) == (2, 1)


def test_a_timing_has_the_median_and_its_spread():
    found = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert found.row() == {
        "median_ms": 3000.0, "p20_ms": pytest.approx(1800.0), "p80_ms": pytest.approx(4200.0), "samples": 5,
    }  # fmt: skip
    assert found.median == 3.0
    assert found.ratio_to(Timing((10.0, 1.0, 1.0, 1.0, 1.0))).seconds == (0.5, 1.0, 2.0, 4.0, 3.0)


def test_buffers_rotate_beyond_the_cache(monkeypatch):
    assert last_level_cache(CPU) >= 2**18
    monkeypatch.setattr(timing, "last_level_cache", lambda device: 2**20)
    assert buffers_beyond_cache(2**19, CPU) == 8  # four times the cache
    assert buffers_beyond_cache(2**19 + 1, CPU) == 8
    assert buffers_beyond_cache(2**19 - 1, CPU) == 9
    assert buffers_beyond_cache(2**40, CPU) == 2
    assert buffers_beyond_cache(1, CPU) == 256


def test_efforts_are_those_of_the_docs():
    full = timing.FULL
    assert (full.rounds, full.seconds, full.least, full.patience) == (15, 0.02, 5, 60.0)
    assert replace(QUICK, patience=0).rounds == QUICK.least == 3
