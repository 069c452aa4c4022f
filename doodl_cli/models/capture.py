"""Networks replayed from CUDA graphs, for a program that is bound by launches otherwise.

A function of tensors is captured once for each shape of its inputs: its evaluation, which keeps
what the gradient needs, and the vector-Jacobian product to its first input. Every evaluation
replays the same graph, with or without a gradient, so that all round alike, as inverting a sampler
needs; they agree with the uncaptured function bit for bit.
"""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

N_WARM_UP = 2  # runs before capture, in which libraries choose their kernels and get their memory

Function = Callable[..., Tensor]


class Captured:
    """A function (x, ...) captured at inputs of one shape; x is what it can be differentiated by.

    A graph reads its inputs by address, so the object keeps its own copies of them all.
    """

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(one.detach().clone() for one in inputs)
        x = self.inputs[0].requires_grad_()
        self.n_replays = 0
        with torch.cuda.device(x.device), torch.enable_grad():  # of which a stream is captured
            beside = torch.cuda.Stream(x.device)
            beside.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(beside):
                for _ in range(N_WARM_UP):
                    out = function(*self.inputs)
                    torch.autograd.grad(out, x, torch.ones_like(out))
                del out
            torch.cuda.current_stream(x.device).wait_stream(beside)
            torch.cuda.empty_cache()
            self.evaluation, self.product = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.evaluation):
                self.out = function(*self.inputs)
            self.cotangent = torch.zeros_like(self.out)
            with torch.cuda.graph(self.product, pool=self.evaluation.pool()):
                (self.vjp,) = torch.autograd.grad(self.out, x, self.cotangent)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's value; its gradient costs a replay more after another call."""
        return Replay.apply(inputs[0], self, inputs[1:])

    @torch.no_grad()
    def evaluate(self, *inputs: Tensor) -> Tensor:
        """Return the function's value, and leave in the graph's memory what its gradient needs."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.evaluation.replay()
        self.n_replays += 1
        return self.out.clone()

    @torch.no_grad()
    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Return cotangent^T d function / d x at the inputs of the last evaluation."""
        self.cotangent.copy_(cotangent)
        self.product.replay()
        return self.vjp.clone()


class Replay(torch.autograd.Function):
    """The replay of a captured function as autograd sees it.

    The graph holds what the last evaluation's gradient needs; for an earlier one's it is replayed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, captured: Captured, others: tuple[Tensor, ...]) -> Tensor:
        out = captured.evaluate(x, *others)
        ctx.save_for_backward(x, *others)
        ctx.captured, ctx.replay = captured, captured.n_replays
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        if ctx.replay != ctx.captured.n_replays:
            ctx.captured.evaluate(*ctx.saved_tensors)
        return ctx.captured.pull_back(cotangents[0]), None, None


class Captures:
    """Functions captured at the shapes that they were called with, captured when they first are."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Captured] = {}
        IN_USE.add(self)

    def __call__(self, key: Hashable, function: Function, *inputs: Tensor) -> Tensor:
        """Return function(*inputs); `key` names the function apart from its inputs."""
        key = (key, *((one.shape, one.dtype) for one in inputs))
        if key not in self.known:
            self.known[key] = Captured(function, inputs)
        return self.known[key](*inputs)


IN_USE: WeakSet[Captures] = WeakSet()


def release_graphs() -> None:
    """Give back the memory of all graphs: of the model, and of scorers that nothing else knows."""
    for captures in IN_USE:
        captures.known.clear()
