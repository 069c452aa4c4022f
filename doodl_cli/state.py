"""What a run goes on from: one file, replaced whole after every iteration.

It says how long the logs, history.jsonl and the frames of each trajectory, were at that moment;
what was written after it is cut off. So a kill at any time costs the iteration it falls in.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from doodl_cli.errors import UserError

FILE = "state.safetensors"


@dataclass(frozen=True)
class State:
    """`progress` is plain values; the tensors by name, empty before a batch's first record."""

    progress: dict[str, Any]
    tensors: dict[str, Tensor]

    def encode(self) -> bytes:
        return save(self.tensors, {"progress": json.dumps(self.progress)})


def read_state(folder: Path) -> State | None:
    """Return the state in a run directory, None where it was cut short before it had one.

    Raises UserError for a file that is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            return State(progress, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"resume={folder}: {FILE} cannot be read ({error})") from error
