"""TensorBoard and Weights & Biases, where their packages are: means over a batch, and its grid.

`log=[tensorboard,wandb]`. The run directory has everything without them.
"""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from doodl_cli.config import Config
from doodl_cli.errors import UserError
from doodl_cli.optimize import Record


class Sink(Protocol):
    """Where numbers and pictures go, by name and step. Closed by what it leaves on `stack`."""

    def __init__(self, stack: ExitStack, config: Config, first_step: int) -> None: ...
    def add(self, values: Mapping[str, float], step: int) -> None: ...
    def add_picture(self, name: str, picture: Image.Image, step: int) -> None: ...


class TensorBoard:
    """Event files in the run directory; those of a run that goes on hide what came after."""

    def __init__(self, stack: ExitStack, config: Config, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(Path(config.output_dir) / "tensorboard")
        self.writer = SummaryWriter(folder, purge_step=first_step)
        stack.callback(self.writer.close)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add_picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")


class WandB:
    """A run of Weights & Biases, named after the folder. Its variables, as WANDB_PROJECT and
    WANDB_MODE, say where it goes; what goes on is the same run there.
    """

    def __init__(self, stack: ExitStack, config: Config, first_step: int) -> None:
        import wandb

        path = Path(config.output_dir)
        file = path / "wandb.id"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self.wandb = wandb
        try:
            run = wandb.init(
                dir=path,
                name="-".join(path.parts[-2:]),
                id=file.read_text(),
                resume="allow",
                config=config.to_dict(),
            )
        except wandb.Error as error:  # what only its server knows
            reason = str(error).partition("\n")[0]
            raise UserError(f"log=wandb: {reason}; WANDB_MODE=offline needs no network") from error
        self.run = stack.enter_context(run)

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def add_picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(picture)}, step=step)


OPENED: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Sinks:
    """All that a run writes to. A step is an iteration; the batches follow one another."""

    def __init__(self, sinks: Sequence[Sink], n_iters: int) -> None:
        self.sinks = sinks
        self.n_iters = n_iters

    def step(self, batch: int, iteration: int) -> int:
        return batch * (self.n_iters + 1) + iteration

    def add(self, record: Record, batch: int) -> None:
        """Write the means of a record."""
        for sink in self.sinks:
            sink.add(mean_values(record), self.step(batch, record.iteration))

    def add_grid(self, path: Path, batch: int) -> None:
        """Write the file of pictures before and after of a batch that is over."""
        for sink in self.sinks:
            with Image.open(path) as picture:
                sink.add_picture("grid", picture.convert("RGB"), self.step(batch, self.n_iters))


@contextmanager
def open_sinks(config: Config, batch: int, n_records: int) -> Iterator[Sinks]:
    """Open what a configuration names, to go on after `n_records` records of a batch."""
    with ExitStack() as stack:
        n_iters = config.last_iteration
        first_step = batch * (n_iters + 1) + n_records
        yield Sinks([OPENED[name](stack, config, first_step) for name in config.sinks], n_iters)


def mean_values(record: Record) -> dict[str, float]:
    """Return a record's means over the samples that have not stopped, those that are finite."""
    values = {
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "latent_norm": record.latent_norm,
        **{f"guidance/{name}": scores for name, scores in record.guidance.items()},
        **{f"evaluate/{name}": scores for name, scores in record.evaluate.items()},
    }
    means = {}
    for name, of_samples in values.items():
        found = [x for x, active in zip(of_samples, record.active, strict=True) if active]
        if found and math.isfinite(mean := sum(found) / len(found)):
            means[name] = mean
    return means
