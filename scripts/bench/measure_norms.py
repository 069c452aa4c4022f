"""Time PyTorch's group norms with SiLU against the kernels', at the shapes of a model's networks.

The shapes are those of an evaluation of the UNet for one latent with classifier-free guidance, and
of decoding it; the tensors are channels last. Calls are replayed from CUDA graphs, as the engine
does, many a graph; the median of the replays. GB/s counts what must be moved: x and the output, and
for the gradient x, the cotangent and the vector-Jacobian product besides.

    python scripts/bench/measure_norms.py --out build/norms.jsonl sd14

One line of JSON a shape, with how often it comes; a summary is printed.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from architectures import UNETS, make_autoencoder
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import group_norm as native
from torch.nn.functional import silu

from doodl_cli.models.fused import FastGroupNorm, fuse_layers

N_CALLS = 20  # a graph
N_REPLAYS = 15
Shape = tuple[tuple[int, ...], int, bool]  # of x; groups; whether SiLU follows


def count_norms(network: nn.Module, evaluate: Callable[[], Any]) -> Counter[Shape]:
    """Return how often an evaluation of a network takes which group norm."""
    found: Counter[Shape] = Counter()

    def note(norm: FastGroupNorm, inputs: tuple[Tensor]) -> None:
        found[tuple(inputs[0].shape), norm.num_groups, norm.activated] += 1

    fuse_layers(network)
    for module in network.modules():
        if isinstance(module, FastGroupNorm):
            module.register_forward_pre_hook(note)
    evaluate()
    return found


def shapes_of(name: str) -> Iterator[tuple[str, Shape, int]]:
    """Yield the group norms of a model's networks and how often each comes; nothing is computed."""
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNETS[name]), make_autoencoder(name == "sdxl")
        side = unet.config.sample_size
        context = torch.zeros(2, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
        x, t = torch.zeros(2, 4, side, side), torch.zeros(())
        counts = {
            "unet": count_norms(unet, lambda: unet(x, t, context, added_cond_kwargs=added)),
            "decoder": count_norms(vae.decoder, lambda: vae.decode(x[:1])),
        }
    for network, counter in counts.items():
        for shape, count in counter.items():
            yield network, shape, count


def time_graph(function: Callable[[], object]) -> float:
    """Return the seconds of one call, replayed from a CUDA graph of many."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(N_CALLS):
            function()
    times = []
    for _ in range(N_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / N_CALLS)
    return statistics.median(times)


def measure(shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """Return microseconds and GB/s of both, without and with the gradient."""
    from doodl_cli.models.norm_kernels import group_norm

    size, n_groups, activated = shape
    n, c, *spatial = size
    x, cotangent = (
        torch.randn(n, *spatial, c, device="cuda", dtype=dtype).movedim(-1, 1) for _ in range(2)
    )
    weight, bias = (torch.randn(c, device="cuda", dtype=dtype) for _ in range(2))

    def pytorch(x: Tensor) -> Tensor:
        y = native(x, n_groups, weight, bias, 1e-5)
        return silu(y) if activated else y

    def kernels(x: Tensor) -> Tensor:
        return group_norm(x, weight, bias, n_groups, 1e-5, activated)

    def pull_back(norm: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(norm(leaf), leaf, cotangent)[0]

    found = {}
    for norm in (pytorch, kernels):
        for what, function, n_moved in (
            ("forward", lambda norm=norm: norm(x), 2),
            ("with_vjp", lambda norm=norm: pull_back(norm), 5),
        ):
            seconds = time_graph(function)
            found[f"{norm.__name__}_{what}_us"] = round(1e6 * seconds, 2)
            found[f"{norm.__name__}_{what}_gb_s"] = round(n_moved * x.nbytes / seconds / 1e9)
    return found


def main() -> None:
    """Measure every shape of a model, and add up what its networks take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=UNETS)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    sums: Counter[str] = Counter()
    with args.out.open("a") as out:
        for network, shape, count in shapes_of(args.model):
            found = measure(shape, getattr(torch, args.dtype))
            line = {"model": args.model, "network": network, "dtype": args.dtype, "count": count,
                    "shape": shape[0], "n_groups": shape[1], "silu": shape[2], **found,
                    "device": torch.cuda.get_device_name(), "torch": torch.__version__}  # fmt: skip
            print(json.dumps(line), file=out, flush=True)
            print(network, shape, f"x {count}:", found, flush=True)
            for name, value in found.items():
                if name.endswith("_us"):
                    sums[f"{network}_{name.removesuffix('_us')}"] += count * value / 1e3
    for name, milliseconds in sums.items():
        print(f"{name}: {milliseconds:.2f} ms in all")


if __name__ == "__main__":
    main()
