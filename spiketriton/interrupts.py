"""Ctrl-C and SIGTERM: the first stops the run after its step, the second at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from spiketriton.errors import EXIT_DONE, EXIT_SIGINT, EXIT_SIGTERM

_EXIT_CODES = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}


class StopSignals:
    """Watches for the signals while it is entered; `requested` says whether one came.

    `say` is called in the signal handler with a line for the user, so it must not use a stream that
    the program may be writing to at that moment. Outside the main thread, where Python delivers no
    signals, nothing is watched.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.signal is None else _EXIT_CODES[self.signal]

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in _EXIT_CODES}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(EXIT_SIGTERM)
        self.signal = signal.Signals(number)
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        self.say(f"{self.signal.name}: finishing this step, then saving; {again} stops at once")
