"""The exceptions that the command line turns into an exit code of their own."""

from collections.abc import Iterator


class UserError(Exception):
    """The input is at fault: one line with the key, its value and what is allowed (exit 2)."""


class CannotWrite(Exception):
    """The disk is at fault, full, read-only or gone: one line with the path (exit 1)."""


class Terminated(BaseException):
    """A signal of a cluster, its argument, came (exit 143). `except Exception` lets it pass."""


class Killed(Exception):
    """The process of a job was killed by a signal, which it names."""


class JobsFailed(Exception):
    """Jobs of a sweep failed; its lines name them with their causes (exit 1)."""


class OutOfTime(Exception):
    """max_seconds are nearly over: what there is is saved, and the run can be resumed (exit 0)."""


NO_ROOM = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
NO_ORDER = "does not have a deterministic implementation"


def lacks_memory(error: BaseException) -> bool:
    """Whether a GPU's memory is too small: PyTorch found no room, or a library beneath it."""
    return any(
        type(one).__name__ == "OutOfMemoryError"  # torch's, which takes a second to import
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in NO_ROOM))
        for one in with_contexts(error)
    )


def find_unordered(error: BaseException) -> str | None:
    """Return the operation that a GPU adds up in no fixed order, where that was asked for."""
    for one in with_contexts(error):
        if isinstance(one, RuntimeError) and NO_ORDER in str(one):
            return str(one).split(maxsplit=1)[0]
    return None


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it.

    What ended the capture of a graph is such a one: the end of the capture is an error in its turn.
    """
    while error is not None:
        yield error
        error = error.__context__
