"""Training passes of an encoder on a GPU by CUDA graphs.

A pass of a small model is hundreds of launches, and the host needs longer to make them than the GPU
to run them. A graph is recorded once for each shape of the batches and makes all of them at once,
one graph forward and one backward. Text is padded to few lengths, and what is drawn at random is
drawn anew for each batch: the seeds of dropout are copied to the GPU before.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import functional_call

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import shared_kernels
from fairseq_csp.ops.dropout import seeds_from

logger = logging.getLogger(__name__)

# rows are padded to a multiple of it
GRAIN = 256
# shapes that have a graph
MOST_GRAPHS = 64
MOST_SEEDS = 4096
WARM_UPS = 3


class Recorder:
    """Records work on a GPU; all graphs share their memory, as one runs after the other."""

    device = "cuda"

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do it several times, as libraries choose and prepare what they do, and forget it."""
        state = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.set_rng_state(state)

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], list]:
        """Return what does it again, and its results, which are those of the last time."""
        state = torch.cuda.get_rng_state()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            results = work()
        torch.cuda.set_rng_state(state)
        return graph.replay, list(results)


class GraphedEncoder:
    """An encoder's training passes by graphs.

    Args:
        encoder: maps tokens (rows, positions) and their lengths to (rows, dim), by work that
            follows from the tensors alone.
        padding: the symbol of padding; None for images, which are never padded.
        most_positions: that the encoder takes.
        make_recorder: makes what records the graphs, at the first use.
    """

    def __init__(
        self,
        encoder: nn.Module,
        padding: int | None,
        most_positions: int,
        make_recorder: type[Recorder] = Recorder,
    ) -> None:
        self.encoder = encoder
        self.padding = padding
        self.most_positions = most_positions
        self.make_recorder = make_recorder
        self.recorder: Recorder | None = None
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}
        self._places: tuple[int, ...] = ()
        self._pending: weakref.ref | None = None

    def __call__(self, source: Tensor, valid: SequenceLengths) -> Tensor | None:
        """Encode (rows, positions) to (rows, dim).

        Returns:
            None where there is no graph for it: on other devices, without gradients, in
            evaluation, at the first batch of a shape, where the backward pass of another one is
            still to come, and beyond ``MOST_GRAPHS``.
        """
        training = self.encoder.training and torch.is_grad_enabled()
        if not training or source.device.type != self.make_recorder.device:
            return None
        if self._pending is not None and self._pending() is not None:
            return None
        rows, positions = source.shape
        if self.padding is not None:
            # longer rows than the encoder takes are its to refuse
            padded = min(-(-positions // GRAIN) * GRAIN, self.most_positions)
            positions = max(positions, padded)
        full = valid.full and positions == source.size(1)
        device = source.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        parameters = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        places = tuple(p.data_ptr() for p in parameters.values())
        if places != self._places:
            # graphs read the parameters where they were
            self._places = places
            self._seen.clear()
            self._graphs.clear()
        key = (rows, positions, full, source.dtype, autocast)
        self._seen[key] += 1
        if key not in self._graphs:
            if self._seen[key] == 1 or len(self._graphs) == MOST_GRAPHS:
                return None
            self._graphs[key] = self._recorded(source, positions, full, parameters, autocast)
        graph = self._graphs[key]
        graph.fill(source, valid)
        token = _Token()
        self._pending = weakref.ref(token)
        return _Replay.apply(graph, token, *parameters.values())

    def _recorded(
        self,
        source: Tensor,
        positions: int,
        full: bool,
        parameters: dict[str, nn.Parameter],
        autocast: tuple[bool, torch.dtype],
    ) -> "_Graph":
        if self.recorder is None:
            self.recorder = self.make_recorder()
        rows, device = source.size(0), source.device
        tokens = source.new_full((rows, positions), self.padding or 0)
        tokens[:, : source.size(1)] = source
        lengths = torch.full((rows,), positions, device=device)
        seeds = torch.zeros(MOST_SEEDS, dtype=torch.int64, device=device)
        taken: list[Tensor] = []

        kept: dict[str, Tensor] = {}
        leaves: dict[str, Tensor] = {}

        def encode() -> list[Tensor]:
            enabled, dtype = autocast
            valid = SequenceLengths(None, positions, device, lambda: lengths, full)
            cast = torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False)
            # autograd knows the parameters from passes on another stream, which a graph must not
            # wait for; these share their memory
            leaves.update((name, p.detach().requires_grad_()) for name, p in parameters.items())
            with seeds_from(seeds) as drawn, shared_kernels(self.encoder), cast:
                kept["out"] = functional_call(self.encoder, leaves, (tokens, valid))
            taken[:] = drawn
            return [kept["out"].detach()]

        used: list[int] = []

        def backward() -> list[Tensor]:
            grad_out = kept.setdefault("grad_out", torch.zeros_like(kept["out"]))
            inputs = list(leaves.values())
            found = torch.autograd.grad(kept["out"], inputs, grad_out, allow_unused=True)
            used[:] = [index for index, grad in enumerate(found) if grad is not None]
            # one tensor, so that one copy takes them all out of the graph's memory
            return [torch.cat([found[index].flatten() for index in used])]

        def both() -> None:
            encode()
            backward()

        # running statistics are of the batches alone
        buffers = [(buffer, buffer.clone()) for buffer in self.encoder.buffers()]
        self.recorder.warm_up(both)
        forward, (out,) = self.recorder.record(encode)
        replay, (flat,) = self.recorder.record(backward)
        for buffer, before in buffers:
            buffer.copy_(before)
        shape = f"{rows} x {positions}{'' if full else ', padded'}"
        logger.info("recorded a CUDA graph for batches of %s", shape)
        return _Graph(
            tokens=tokens,
            padding=self.padding,
            lengths=lengths,
            full=full,
            seeds=seeds[: len(taken)],
            forward=forward,
            out=out,
            backward=replay,
            grad_out=kept["grad_out"],
            flat=flat,
            used=used,
            shapes=[p.shape for p in parameters.values()],
        )


class _Token:
    """Lives as long as a backward pass may come."""


@dataclass
class _Graph:
    tokens: Tensor
    padding: int | None
    lengths: Tensor
    full: bool
    seeds: Tensor
    forward: Callable[[], None]
    out: Tensor
    backward: Callable[[], None]
    grad_out: Tensor
    flat: Tensor
    used: list[int]
    shapes: list[torch.Size]

    def fill(self, source: Tensor, valid: SequenceLengths) -> None:
        """Lay a batch where the graph reads it, and draw the seeds of its dropout."""
        positions = source.size(1)
        self.tokens[:, :positions].copy_(source, non_blocking=True)
        if self.padding is not None:
            self.tokens[:, positions:] = self.padding
        if not self.full:
            self.lengths.copy_(valid.tensor, non_blocking=True)
        if len(self.seeds):
            pinned = self.seeds.device.type == "cuda"
            drawn = torch.empty(len(self.seeds), dtype=torch.int64, pin_memory=pinned)
            self.seeds.copy_(drawn.random_(), non_blocking=True)

    def gradients(self) -> list[Tensor | None]:
        """Return those of the last backward pass, one for each parameter."""
        found: list[Tensor | None] = [None] * len(self.shapes)
        sizes = [self.shapes[index].numel() for index in self.used]
        parts = self.flat.clone().split(sizes)
        for index, part in zip(self.used, parts, strict=True):
            found[index] = part.view(self.shapes[index])
        return found


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, graph: _Graph, token: _Token, *parameters: nn.Parameter
    ) -> Tensor:
        ctx.graph, ctx.token = graph, token
        graph.forward()
        return graph.out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.graph.grad_out.copy_(grad)
        ctx.graph.backward()
        ctx.token = None
        return None, None, *ctx.graph.gradients()
