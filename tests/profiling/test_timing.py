"""Who is sampled when, how often, and what is made of the samples."""

import gc
import time

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
        assert not gc.isenabled()
        self.turns.append(self.name)
        return self.seconds / self.seconds * self.seconds  # ZeroDivisionError: of 0 seconds


def test_contenders_take_turns_and_the_first_changes():
    turns: list[str] = []
    timings = race({name: Scripted(name, turns, i) for i, name in enumerate("abc", 1)}, QUICK)
    assert "".join(turns) == "abcbcacab"
    assert timings["c"].seconds == (3, 3, 3)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        race({"a": Scripted("a", [], 0)}, QUICK)
    assert gc.isenabled()


@pytest.mark.parametrize(("least", "patience", "samples"), [(2, 0, 2), (9, 0, 9), (2, 60, 9)])
def test_a_slow_case_ends_early_but_not_too_early(least, patience, samples):
    effort = Effort(rounds=9, seconds=0, warm_up=0, least=least, patience=patience)
    assert len(race({"a": Scripted("a", [], 1.0)}, effort)["a"].seconds) == samples


class Clocked(Timed):
    """Each call takes as many milliseconds on a clock that only it moves, the first of all a second more.

    On a made-up GPU a replayed call takes half as long: there is no Python between.
    """

    captures = True

    def __init__(
        self, monkeypatch, milliseconds: float, device: str = "cpu", refuses: bool = False
    ) -> None:
        self.milliseconds, self.device = milliseconds, torch.device(device)
        self.now = self.called = self.replayed = 0
        work = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = work.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        def capture(call, count: int, device: torch.device):
            def replay() -> None:
                work.replayed += 1
                work.now += count * milliseconds / 2

            if refuses:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            return replay

        for clock in ("perf_counter", "process_time"):
            monkeypatch.setattr(timing.time, clock, lambda: self.now / 1e3)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(timing, "capture", capture)

    def __call__(self) -> None:
        self.now += self.milliseconds if self.called else 1000
        self.called += 1


def test_a_sample_is_filled_after_the_warm_up(monkeypatch):
    work = Clocked(monkeypatch, 10)
    work.prepare(Effort(rounds=1, seconds=0.045, warm_up=0.095))
    assert work.called == 11  # the one that compiles, then 10 of 10 ms
    assert work.calls == 5  # 45 ms take 5 calls of 10 ms
    assert work.sample() == pytest.approx(0.01)
    assert work.called == 16
    work = Clocked(monkeypatch, 10)
    work.prepare(QUICK)
    assert (work.called, work.calls) == (2, 1)


@pytest.mark.parametrize(("threads", "counted"), [(1, False), (2, True)])
def test_one_thread_is_timed_by_the_processor(monkeypatch, threads, counted):
    """Of which others on its core take nothing; the threads of several would be added up."""

    class Sleeps(Timed):
        device = torch.device("cpu")

        def __call__(self) -> None:
            time.sleep(0.02)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert (Sleeps().sample() > 0.019) == counted


@pytest.mark.parametrize(("rotation", "calls"), [(7, 7), (1, 4)])  # 4 fill a millisecond
def test_below_a_millisecond_replays_of_a_graph_are_timed(monkeypatch, rotation, calls):
    work = Clocked(monkeypatch, 0.25, "cuda")
    work.rotation = rotation
    work.prepare(Effort(rounds=1, seconds=0.004, warm_up=0))
    assert work.timed == f"replays of a CUDA graph of {calls} calls"
    assert work.calls == {7: 5, 4: 8}[calls]  # replays of 0.875 or 0.5 ms fill 4 ms
    assert work.sample() == pytest.approx(0.125e-3)
    assert work.replayed == 2 + work.calls


@pytest.mark.parametrize(
    ("milliseconds", "captures", "because"),
    [
        (1.5, True, ""),
        (0.25, False, ""),
        (0.25, True, ", because operation not permitted when stream is capturing"),
    ],
)
def test_longer_calls_and_those_that_no_graph_can_hold_are_timed_as_they_are(
    monkeypatch, milliseconds, captures, because
):
    work = Clocked(monkeypatch, milliseconds, "cuda", refuses=True)
    work.captures = captures
    work.prepare(QUICK)
    assert work.timed == "calls, by CUDA events" + because
    assert work.sample() == pytest.approx(milliseconds / 1e3)


def test_a_timing_has_the_median_and_its_spread():
    found = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert found.row() == {
        "median_ms": 3000.0, "p20_ms": pytest.approx(1800.0), "p80_ms": pytest.approx(4200.0), "samples": 5,
    }  # fmt: skip
    assert found.ratio_to(Timing((10.0, 1.0, 1.0, 1.0, 1.0))).seconds == (0.5, 1.0, 2.0, 4.0, 3.0)


def test_buffers_rotate_beyond_the_cache(monkeypatch):
    assert last_level_cache(CPU) >= 2**18
    monkeypatch.setattr(timing, "last_level_cache", lambda device: 2**20)
    found = {size: buffers_beyond_cache(size, CPU) for size in (2**19, 2**19 - 1, 2**40, 1)}
    assert found == {2**19: 8, 2**19 - 1: 9, 2**40: 2, 1: 256}  # four times the cache
