"""Signals: the first one stops after the step, the second one at once."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from spiketriton.errors import EXIT_SIGTERM
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.ranks import Ranks


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(number):
    said: list[str] = []
    leaves = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with StopSignals(said.append) as stop:
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(leaves):
            signal.raise_signal(number)
    assert len(said) == 1


def test_a_signal_while_ranks_agree_is_for_their_next_agreement():
    """Else this rank would stop and the other would wait for it in the next step."""

    class Agreeing(Ranks):
        world_size = 2

        def most(self, value: float) -> float:
            signal.raise_signal(signal.SIGTERM)
            return value

    with StopSignals(lambda text: None, Agreeing()) as stop:
        assert not stop.anywhere()
        assert stop.anywhere()
        assert stop.exit_code == EXIT_SIGTERM


def test_nohup_keeps_training():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(print) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [
        (signal.SIGHUP, 129, "a second signal"),
        (signal.SIGINT, 130, "Ctrl-C again"),
        (signal.SIGTERM, 143, "a second signal"),
    ],
)
def test_the_first_signal_is_kept_and_said(number, code, again):
    said: list[str] = []
    before = signal.getsignal(number)
    with StopSignals(said.append) as stop:
        assert (stop.requested, stop.anywhere(), stop.exit_code) == (False, False, 0)
        signal.raise_signal(number)
        assert (stop.requested, stop.anywhere(), stop.exit_code) == (True, True, code)
    assert signal.getsignal(number) is before
    name = signal.Signals(number).name
    assert said == [f"{name}: finishing this step, then saving; {again} stops at once"]


def test_of_several_ranks_a_second_signal_changes_nothing():
    class Two(Ranks):
        world_size = 2

    said: list[str] = []
    with StopSignals(said.append, Two()) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == EXIT_SIGTERM
    assert said == ["SIGTERM: finishing this step, then saving"]


def test_a_signal_to_another_rank_stops_this_one():
    class Other(Ranks):
        def most(self, value: float) -> float:
            return max(value, signal.SIGINT)

    stop = StopSignals(print, Other())
    assert stop.anywhere()
    assert stop.exit_code == 130


def test_outside_the_main_thread_nothing_is_watched():
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with StopSignals(print):
            assert signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()
