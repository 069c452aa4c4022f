"""The pair at x_0 that the inversion of a real picture starts from.

A sampler's pair ends with more than a picture: EDICT's holds x_0 twice (Wallace et al. 2022,
arXiv 2211.12446, section 4.2), that of a two-step method x_0 and the state one step before it. A
picture says only x_0; the state before comes from one step of DDIM inversion. Whatever it is,
generation gives x_0 back, because x_0 itself is kept.
"""

import torch
from torch import Tensor

from doodl_cli.sampling.ddim import ddim
from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.solve import Net, Pair
from doodl_cli.sampling.table import Table, drop_idle_end


@torch.no_grad()
def pair_at_x_0(table: Table, grid: Grid, net: Net, x_0: Tensor) -> Pair:
    """Return the pair of a picture's latents x_0 (b, c, h, w), x_0 in the slots that hold it.

    With x_0 = B x_1 + C net(x_1, t), DDIM's last step, x_1 = (x_0 - C net(x_0, t)) / B.
    """
    if table.x_0_slots == (0, 1):
        return x_0, x_0
    row = ddim(drop_idle_end(grid)).rows[-1]
    x_1 = (x_0 - row.C * net(x_0, row.t).to(x_0.dtype)) / row.B
    return (x_1, x_0) if table.x_0_slots == (1,) else (x_0, x_1)
