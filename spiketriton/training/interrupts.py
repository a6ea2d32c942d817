"""Ctrl-C, SIGTERM and a closed terminal: the first stops the run after its step, the second at once.

With several ranks, one signal to any of them stops all after the same step. Further signals are
ignored, because a scheduler signals both torchrun and the ranks, and torchrun forwards its own.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from spiketriton.errors import EXIT_DONE, EXIT_SIGHUP, EXIT_SIGINT, EXIT_SIGTERM
from spiketriton.training.ranks import Ranks

_EXIT_CODES = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}
_HANGUP = getattr(signal, "SIGHUP", None)  # None: Windows
if _HANGUP is not None:
    _EXIT_CODES[_HANGUP] = EXIT_SIGHUP


class StopSignals:
    """A context manager that catches the signals; `requested` is True once one has come.

    `say` is called in the signal handler with a line for the user, so it must not use a stream that
    the program may be writing to at that moment. Outside the main thread, where Python delivers no
    signals, it does nothing.
    """

    def __init__(self, say: Callable[[str], None], ranks: Ranks | None = None) -> None:
        self.say, self.ranks = say, ranks or Ranks()
        self.signal: signal.Signals | None = None
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
        alone = self.ranks.world_size == 1
        if self.signal is not None:
            if alone:
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                raise SystemExit(_EXIT_CODES[signal.Signals(number)])
            return
        self.signal = signal.Signals(number)
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        hint = f"; {again} stops at once" if alone else ""
        self.say(f"{self.signal.name}: finishing this step, then saving{hint}")
