"""Signals: the first one stops after the step, the second one at once."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from spiketriton.system.errors import EXIT_SIGTERM
from spiketriton.system.ranks import Ranks
from spiketriton.training import interrupts
from spiketriton.training.interrupts import StopSignals
from tests.small_runs import QUICK, last_state, small_trainer


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Hang-ups, which are ignored where nohup began the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def later(monkeypatch) -> Callable[[], None]:
    """Lets time pass until a signal counts as a second one."""
    now = [0.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    return lambda: now.__setitem__(0, now[0] + interrupts.MOMENT)


ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.mark.parametrize("number", ENDS)
def test_a_second_signal_stops_at_once(number, later):
    with StopSignals(lambda text: None) as stop:
        signal.raise_signal(number)
        assert stop.requested
        later()
        with pytest.raises(ENDS[number]):
            signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_second_one_of_the_same_moment_and_any_hang_up_change_nothing(number, later):
    """A terminal that closes hangs up twice, within a millisecond."""
    with StopSignals(lambda text: None) as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        later()
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal == number


def test_a_save_ends_before_a_second_signal_takes_effect(tmp_path, monkeypatch, later):
    trainer = small_trainer(tmp_path / "run", *QUICK)
    save = trainer.checkpoints.save_last

    def signalled(state):
        signal.raise_signal(signal.SIGINT)
        later()
        signal.raise_signal(signal.SIGTERM)
        return save(state)

    monkeypatch.setattr(trainer.checkpoints, "save_last", signalled)
    with pytest.raises(SystemExit):
        trainer.fit()
    assert last_state(tmp_path / "run")["step"] == 7


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
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals(print) as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        (signal.SIGHUP, 129, ""),
        (signal.SIGINT, 130, "; Ctrl-C again stops at once"),
        (signal.SIGTERM, 143, "; a second signal stops at once"),
    ],
)
def test_the_first_signal_is_kept_and_said(number, code, hint):
    said: list[str] = []
    before = signal.getsignal(number)
    with StopSignals(said.append) as stop:
        assert (stop.requested, stop.anywhere(), stop.exit_code) == (False, False, 0)
        signal.raise_signal(number)
        assert (stop.requested, stop.anywhere(), stop.exit_code) == (True, True, code)
    assert signal.getsignal(number) is before
    name = signal.Signals(number).name
    assert said == [f"{name}: finishing this step, then saving{hint}"]


def test_of_several_ranks_a_second_signal_changes_nothing():
    class Two(Ranks):
        world_size = 2

    with StopSignals(lambda text: None, Two()) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == EXIT_SIGTERM


def test_outside_the_main_thread_nothing_is_watched():
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with StopSignals(print):
            assert signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()
