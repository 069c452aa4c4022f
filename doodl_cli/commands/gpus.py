"""Which GPU a process works on, where several processes of a machine share the GPUs."""

import itertools
import os
import tempfile
from functools import cache
from pathlib import Path


def count_gpus() -> int:
    """Return the number of visible GPUs, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


@cache
def take_gpu() -> None:
    """Leave one GPU visible to this process: the one that the fewest others have taken.

    It is taken by a lock on a file until the process ends, so that any number of processes and
    sweeps agree on it. Must come before the first use of CUDA.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count_gpus())]
    locks = Path(tempfile.gettempdir()) / f"doodl-gpus-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for n_before in itertools.count():
        for name in names:
            lock = os.open(locks / f"{name}-{n_before}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                return  # the lock stays open
