"""A training step as a CUDA graph: recorded once, then replayed, so that the GPU never waits for Python.

A small student's step at batch 64 is some hundreds of kernels of a few microseconds each, which Python launches more
slowly than a GPU runs them. A replay launches all of them at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger("kdstudy.graphs")

# Steps that run as they are written before one is recorded: libraries choose their algorithms in them, and the
# optimiser makes its buffers.
_EAGER_STEPS = 3


class GraphedStep:
    """Runs a step as a CUDA graph from its fourth call with inputs of one shape on; before, and for others, eagerly.

    Numbers in the step that are no tensors become constants of the graph. A step that cannot be recorded (one that
    reads a tensor's value) goes on eagerly.

    Args:
        step: takes tensors, and None in fixed places, on a GPU; trains, and returns a tensor.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self._step = step
        self._shapes: list[torch.Size | None] = []
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor | None, ...] = ()
        self._output: Tensor | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """One step. The tensor that it returns is overwritten by the next one."""
        shapes = [None if given is None else given.shape for given in inputs]
        if not self._shapes:
            self._shapes = shapes
        if shapes != self._shapes:
            return self._step(*inputs)
        self._calls += 1
        if self._calls <= _EAGER_STEPS:
            return self._beside(inputs)
        if self._calls == _EAGER_STEPS + 1:
            self._record(inputs)
        if self._graph is None or self._output is None:
            return self._step(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output

    def _beside(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        """A step on a stream of its own, as it has to be before a recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        output.record_stream(torch.cuda.current_stream())  # it is used there, so its memory must not go back before
        return output

    def _record(self, inputs: tuple[Tensor | None, ...]) -> None:
        """Record the step; that trains nothing yet."""
        self._inputs = tuple(None if given is None else given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._output = self._step(*self._inputs)
        except torch.OutOfMemoryError:
            raise  # more memory would help, which whoever starts runs can give
        except RuntimeError as error:
            log.warning("the step cannot be recorded as a CUDA graph, it runs eagerly: %s", error)
            return
        self._graph = graph
