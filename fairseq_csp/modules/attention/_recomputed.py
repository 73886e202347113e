"""Attention by scores in blocks that stay in the cache and are computed again, not kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import draw_seed, drop_by_seed
from fairseq_csp.ops.scores import (
    add_diagonals,
    dropped_weights,
    dropped_weights_backward,
    has_kernel,
)

# scores of a block for each thread of a CPU: 4 MiB in float32, about a core's cache
SCORES_OF_THREAD = 1 << 20
# on a GPU, where a call costs more
SCORES_ON_DEVICE = 1 << 25
# up to so many scores blocks take as long on a CPU as all at once, or a tenth longer; with a kernel
# up to so many positions of a sequence, whatever their number
FEW_SCORES, FEW_POSITIONS = 1 << 22, 512

Weights = Callable[[Tensor, SequenceLengths], Tensor]


def blocks_pay(queries: Tensor, kernel: str | None) -> bool:
    """Tell whether all scores are better computed in blocks, and again, than kept.

    Args:
        queries: (batch, width, positions), as many as keys.
        kernel: as :func:`attend_in_blocks` takes it.
    """
    batch, _, positions = queries.shape
    scores = batch * positions**2
    if not _one_by_one(queries.device):
        return scores > SCORES_ON_DEVICE
    return scores > FEW_SCORES or (positions > FEW_POSITIONS and has_kernel(kernel, queries))


def _scores_together(device: torch.device) -> int:
    return SCORES_OF_THREAD * torch.get_num_threads() if _one_by_one(device) else SCORES_ON_DEVICE


def _one_by_one(device: torch.device) -> bool:
    """Tell whether sequences are taken by themselves, or few at a time, each in its own length."""
    return device.type == "cpu"


def attend_in_blocks(
    function: Weights,
    kernel: str | None,
    lengths: SequenceLengths,
    values: Tensor,
    queries: Tensor,
    keys: Tensor,
    line: Tensor | None,
    p: float,
) -> Tensor:
    """Return ``dropout(f(q^T k + bias)) v`` without ever holding the scores of all positions.

    The backward pass computes a block's weights again (as in arXiv 2205.14135, but with all keys
    of a query at once). On a CPU a sequence costs what its own length does.

    Args:
        function: f, of scores (batch, queries, keys) and lengths; gives the weights, none for
            padded keys. It must have no parameters, and a query's weights must depend on its own
            scores alone.
        kernel: its name among ``fairseq_csp.ops.scores.KINDS``; None without one.
        lengths: valid positions of each sequence.
        values: (batch, channels, positions), any floating dtype.
        queries: (batch, width, positions), scaled, the dtype of the values.
        keys: the same shape and dtype.
        line: (2 * positions - 1,), the bias: entry positions - 1 + d is for the key d after the
            query; None without.
        p: probability of dropping a weight.

    Returns:
        The shape and dtype of the values; 0 for sequences without valid positions.
    """
    device = values.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, queries, keys = (x.to(dtype) for x in (values, queries, keys))
    line = None if line is None else line.to(queries.dtype)
    values, queries, keys = (x.contiguous() for x in (values, queries, keys))
    with torch.autocast(device, enabled=False):
        return _Attend.apply(values, queries, keys, line, function, kernel, lengths, p)


@dataclass(frozen=True)
class _Block:
    """Sequences and queries whose scores are computed together.

    Attributes:
        sequences: which sequences.
        lengths: their lengths, in so many positions as the longest of them has.
        queries: which queries.
    """

    sequences: slice
    lengths: SequenceLengths
    queries: slice

    def of_keys(self, x: Tensor) -> Tensor:
        """Return the part of (batch, width, positions) that the keys have."""
        return x[self.sequences, :, : self.lengths.positions]

    def of_queries(self, x: Tensor) -> Tensor:
        """Return the part of (batch, width, positions) that the queries have."""
        return x[self.sequences, :, self.queries]

    def of_line(self, line: Tensor) -> Tensor:
        """Return the part of the bias that serves the block, (queries + keys - 1,)."""
        first = (line.size(0) + 1) // 2 - self.queries.stop
        count = self.queries.stop - self.queries.start
        return line[first : first + count + self.lengths.positions - 1]

    def scores(self, queries: Tensor, keys: Tensor, line: Tensor | None) -> Tensor:
        """Return the scores of the queries, from the last to the first: (batch, queries, keys).

        In this order the bias of all pairs is a view of the line.
        """
        last_first, keys = self.of_queries(queries).flip(2).transpose(1, 2), self.of_keys(keys)
        if line is None:
            return torch.bmm(last_first, keys)
        bias = self.of_line(line).unfold(0, keys.size(2), 1)
        return torch.baddbmm(bias, last_first, keys)


def _blocks(lengths: SequenceLengths, batch: int) -> Iterator[_Block]:
    """Divide all pairs of positions into blocks."""
    positions = lengths.positions
    most = _scores_together(lengths.device)
    one_by_one = _one_by_one(lengths.device)
    together = min(max(1, most // max(positions**2, 1)), batch) if one_by_one else batch
    for first in range(0, batch, together):
        sequences = slice(first, first + together)
        part, longest = lengths, positions
        if one_by_one:
            host = lengths.host[sequences]
            longest = max(host)
            if (host, longest) != (lengths.host, positions):
                part = SequenceLengths(host, longest, lengths.device)
        count = max(1, most // max(together * longest, 1))
        for query in range(0, longest, count):
            yield _Block(sequences, part, slice(query, min(query + count, longest)))


@dataclass(frozen=True)
class _DroppedWeights:
    """``dropout(f(scores))``, by a kernel where there is one, which writes over the scores.

    Attributes:
        function: f.
        kernel: its name there, or None.
        p: probability of dropping a weight.
    """

    function: Weights
    kernel: str | None
    p: float

    def __call__(self, scores: Tensor, lengths: SequenceLengths, seed: Tensor | None) -> Tensor:
        """Return the weights (batch, queries, keys), the scores' dtype or wider."""
        if kernel := self._kernel_for(scores):
            return dropped_weights(kernel, scores, lengths.host, self.p, seed)
        weights = self.function(scores, lengths)
        return weights if seed is None else drop_by_seed(weights, self.p, seed)

    def backward(
        self, scores: Tensor, grad: Tensor, lengths: SequenceLengths, seed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the weights again, and the scores' gradient from theirs."""
        if kernel := self._kernel_for(scores):
            return dropped_weights_backward(kernel, scores, grad, lengths.host, self.p, seed)
        with torch.enable_grad():
            weights = self.function(scores.requires_grad_(), lengths)
        used, grad = weights.detach(), grad.to(weights.dtype)
        if seed is not None:
            used, grad = (drop_by_seed(x, self.p, seed) for x in (used, grad))
        (grad_scores,) = torch.autograd.grad(weights, scores, grad)
        return used, grad_scores

    def _kernel_for(self, scores: Tensor) -> str | None:
        return self.kernel if has_kernel(self.kernel, scores) else None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        values: Tensor,
        queries: Tensor,
        keys: Tensor,
        line: Tensor | None,
        function: Weights,
        kernel: str | None,
        lengths: SequenceLengths,
        p: float,
    ) -> Tensor:
        ctx.save_for_backward(values, queries, keys, *(() if line is None else (line,)))
        ctx.weights, ctx.lengths = _DroppedWeights(function, kernel, p), lengths
        ctx.seeds = []
        out = torch.empty_like(values) if lengths.full else torch.zeros_like(values)
        for block in _blocks(lengths, len(values)):
            ctx.seeds.append(draw_seed() if p else None)
            scores = block.scores(queries, keys, line)
            weights = ctx.weights(scores, block.lengths, ctx.seeds[-1])
            weights = weights.to(values.dtype).transpose(1, 2)
            block.of_queries(out).copy_(torch.bmm(block.of_keys(values), weights).flip(2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, queries, keys, *lines = ctx.saved_tensors
        line = lines[0] if lines else None
        wide = torch.promote_types(values.dtype, torch.float32)
        grad_values, grad_keys = (torch.zeros_like(x, dtype=wide) for x in (values, keys))
        grad_queries = torch.zeros_like(queries)
        grad_line = None if line is None else torch.zeros_like(line, dtype=wide)
        for index, block in enumerate(_blocks(ctx.lengths, len(values))):
            scores = block.scores(queries, keys, line)
            incoming = block.of_queries(grad).flip(2)
            grad_weights = torch.bmm(incoming.transpose(1, 2), block.of_keys(values))
            used, grad_scores = ctx.weights.backward(
                scores, grad_weights, block.lengths, ctx.seeds[index]
            )
            _add_product(block.of_keys(grad_values), incoming, used.to(values.dtype))
            product = torch.bmm(block.of_keys(keys), grad_scores.transpose(1, 2))
            block.of_queries(grad_queries).copy_(product.flip(2))
            _add_product(block.of_keys(grad_keys), block.of_queries(queries).flip(2), grad_scores)
            if grad_line is not None:
                add_diagonals(block.of_line(grad_line), grad_scores)
        if grad_line is not None:
            grad_line = grad_line.to(line.dtype)
        return (
            grad_values.to(values.dtype),
            grad_queries,
            grad_keys.to(keys.dtype),
            grad_line,
            *(None,) * 4,
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a batch's products to a total in float32 or wider."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b))
