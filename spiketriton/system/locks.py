"""Locks between processes, which end with the process that holds them, however that ends."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def no_link(path: str, flags: int) -> int:
    """An ``opener`` of ``open`` that follows no link: OSError of ELOOP."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, forks_share: bool = True) -> Iterator[None]:
    """Holds the lock of the file ``path``, which is made where it is missing.

    BlockingIOError or PermissionError: another process holds it, and ``wait`` is False. OSError of ELOOP: it is a link,
    which is not followed. Other OSErrors: there is no such lock here. ``forks_share``: forked children that outlive
    this process keep the lock.
    """
    if fcntl is None:
        import filelock  # torch needs it too

        held = filelock.FileLock(path)
        try:
            held.acquire(blocking=wait)
        except filelock.Timeout:
            raise BlockingIOError(errno.EAGAIN, "in use", str(path)) from None
        try:
            yield
        finally:
            held.release()
        return
    with open(path, "ab", opener=no_link) as file:
        lock = fcntl.flock if forks_share else fcntl.lockf
        lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def writing(part: Path) -> Iterator[None]:
    """Only one process or thread at a time writes the file ``part`` and then renames or removes it.

    What an earlier one left there when it was killed is overwritten. OSError: the file cannot be made.
    """
    if fcntl is None:
        yield
        return
    while True:
        with open(part, "ab", opener=no_link) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                mine = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                mine = False
            if mine:  # and not what another has renamed meanwhile
                yield
                return
