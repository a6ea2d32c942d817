"""Ctrl-C, SIGTERM and a closed terminal: the first stops the run after its step, the second at once.

A second one within a moment is the same wish: a terminal that closes sends SIGHUP twice. SIGHUP never counts as a
second one. A save is never broken off. With several ranks, one signal to any of them stops all after the same step,
and further ones are ignored: a scheduler signals torchrun and the ranks, and torchrun forwards its own.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from spiketriton.system.errors import EXIT_DONE, EXIT_SIGHUP, EXIT_SIGINT, EXIT_SIGTERM
from spiketriton.system.ranks import Ranks

MOMENT = 1.0  # seconds
_EXIT_CODES = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}
_HANGUP = getattr(signal, "SIGHUP", None)  # None: Windows
if _HANGUP is not None:
    _EXIT_CODES[_HANGUP] = EXIT_SIGHUP


class StopSignals:
    """Catches the signals while entered; `requested` is True once one has come.

    `say` is called in the signal handler, so it must not use a stream that may be written to at that moment. Outside
    the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, say: Callable[[str], None], ranks: Ranks | None = None) -> None:
        self.say, self.ranks = say, ranks or Ranks()
        self.signal: signal.Signals | None = None
        self._since = 0.0  # when the first one came
        self._saving = False
        self._second: signal.Signals | None = None  # while saving
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def anywhere(self) -> bool:
        """Whether any rank has received a signal; all ranks must call this together.

        A signal that arrives during the call counts in the next one, so that all ranks agree.
        """
        number = int(self.ranks.most(self.signal or 0))
        if number:
            self.signal = signal.Signals(number)
        return number != 0

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While entered, a second signal waits; it takes effect at the end."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self._second is not None:
            self._end(self._second)

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.signal is None else _EXIT_CODES[self.signal]

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_CODES:
                # nohup has asked for SIGHUP to be ignored
                if (number, signal.getsignal(number)) != (_HANGUP, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        alone, now = self.ranks.world_size == 1, time.monotonic()
        if self.signal is not None:
            if not alone or number == _HANGUP or now < self._since + MOMENT:
                return
            if not self._saving:
                self._end(signal.Signals(number))
            self._second = signal.Signals(number)
            return
        self.signal, self._since = signal.Signals(number), now
        again = {signal.SIGINT: "Ctrl-C again", signal.SIGTERM: "a second signal"}.get(self.signal)
        hint = f"; {again} stops at once" if alone and again else ""
        self.say(f"{self.signal.name}: finishing this step, then saving{hint}")

    @staticmethod
    def _end(number: signal.Signals) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_EXIT_CODES[number])
