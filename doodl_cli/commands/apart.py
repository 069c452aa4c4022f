"""A call in a process of its own: what kills it, a lack of memory say, kills nothing else."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from doodl_cli.errors import Killed, Terminated


def call_apart(function: Callable[[], Any]) -> Any:
    """Call in a fork of this process; return the result, None where the process ended without one.

    What the fork has open and holds, GPUs and locks among it, is free afterwards. Linux only:
    elsewhere a fork may not use what its parent has loaded. Raises Killed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=call_and_send, args=(function, sender))
    process.start()
    sender.close()  # the fork's alone now: its end is the end of the pipe
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    if process.exitcode is not None and process.exitcode < 0:
        raise Killed(f"killed by {signal.Signals(-process.exitcode).name}")
    return result


def call_and_send(function: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send(function())
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)
