"""What Ctrl-C and the signals of a cluster do: unwind the stack, or wait. Standard library only."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from doodl_cli.errors import Terminated

# What a cluster sends before it kills, submitit SIGUSR2; Windows has only SIGTERM.
TERMINATING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


@contextmanager
def handled(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Handle signals so for a while; only the main thread may, so that others leave them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Let a signal unwind the stack, so that a run saves what it has."""
    raise Terminated(signum)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and the signals of a cluster wait until the files agree with each other again."""
    arrived: list[int] = []
    with handled((signal.SIGINT, *TERMINATING), lambda number, frame: arrived.append(number)):
        yield
    if arrived:
        signal.raise_signal(arrived[0])
