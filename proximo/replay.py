"""A call on a GPU, recorded once and played again: one launch, where the call itself makes one for every kernel."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

log = logging.getLogger("proximo")
Call = Callable[..., tuple[Tensor, ...]]
Computes = Callable[[], Sequence[Tensor]]
Recording = tuple[Callable[[], None], Sequence[Tensor]]  # what computes once more, and the tensors it computes into
WARM_UP = 3  # calls before the recording, in which kernels are loaded and libraries take their memory


def replayed(call: Call, tensors: Sequence[Tensor], lasting: Iterable[int] = ()) -> Call:
    """The call as a `Replay`, where the tensors it is for are on a GPU; else the call itself."""
    return Replay(call, lasting) if all(tensor.device.type == "cuda" for tensor in tensors) else call


def cuda_graph(compute: Computes) -> Recording:
    """`compute` as a CUDA graph. It runs here a few times, on a side stream, before it is captured."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                compute()
    finally:
        current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = compute()
    return graph.replay, outputs


class Replay:
    """`call(*tensors)`, recorded when it is first called and played from then on.

    A recording reads and writes the same memory every time. Arguments at the positions `lasting` are used where they
    are, and may be changed in place: parameters, moments, buffers. The others come and go. Each is copied into a place
    of its own, unless it is the very tensor of the call before and torch knows of no change to it since; so memory
    that something else than torch writes to must come as a lasting argument or as a new tensor. What is returned is
    the caller's own.
    """

    def __init__(self, call: Call, lasting: Iterable[int], record: Callable[[Computes], Recording] = cuda_graph):
        self.call, self.lasting, self.record = call, tuple(lasting), record
        self.addresses: list[int] | None = None  # of the lasting arguments; None before there is a recording
        self.refused = False

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.refused:
            return self.call(*tensors)
        addresses = [tensors[i].data_ptr() for i in self.lasting]
        if self.addresses != addresses:
            try:
                self._begin(tensors)
            except Exception as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                log.warning("a call cannot be recorded as a CUDA graph and runs without: %s", first)
                self.refused = True
                return self.call(*tensors)
            self.addresses = addresses
        for i, place in self.places.items():
            self._bring(i, tensors[i], place)
        self.play()
        return tuple(output.clone() for output in self.outputs)

    def _begin(self, tensors: Sequence[Tensor]) -> None:
        """Record, which computes several times, and leave lasting arguments and generators as they were."""
        self.places = {i: tensor.clone() for i, tensor in enumerate(tensors) if i not in self.lasting}
        self.seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        arguments = [self.places.get(i, tensor) for i, tensor in enumerate(tensors)]
        before = {i: tensors[i].clone() for i in self.lasting}
        devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
        try:
            with torch.random.fork_rng(devices):
                self.play, self.outputs = self.record(lambda: self.call(*arguments))
        finally:
            for i, old in before.items():
                tensors[i].copy_(old)

    def _bring(self, i: int, tensor: Tensor, place: Tensor) -> None:
        """Copy an argument into its place, unless it is there.

        An address alone would not tell: what is freed is handed out again. A reference that lives does, being to the
        very tensor, of which `_version` counts the changes.
        """
        known, state = self.seen.get(i), (tensor._version, tensor.data_ptr())
        if known is not None and known[0]() is tensor and known[1:] == state:
            return
        if tensor.shape != place.shape:
            raise ValueError(f"argument {i} is {list(tensor.shape)}, it was recorded as {list(place.shape)}")
        place.copy_(tensor)
        self.seen[i] = weakref.ref(tensor), *state
