"""Attention weights of a block of scores, and their gradient, by the CPU kernels (``scores.cpp``).

Beside the formula, which each attention function gives, one pass takes the place of the function,
its masks, dropout and all that autograd keeps of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_csp.ops.kernels import implementation, native_operators

# what has a kernel
KINDS = ("softmax", "laplace", "relu2")


def has_kernel(kind: str | None, like: Tensor) -> bool:
    """Whether the kernels serve.

    Args:
        kind: one of ``KINDS``, or another function or None, which have none.
        like: a tensor of the scores' dtype and device.
    """
    narrow = like.dtype in (torch.float32, torch.bfloat16)
    if kind not in KINDS or not narrow or torch.compiler.is_compiling():
        return False
    return like.device.type == "cpu" and implementation(like.device) == "native"


def dropped_weights(
    kind: str, scores: Tensor, lengths: Sequence[int], p: float, seed: Tensor | None
) -> Tensor:
    """Turn scores into ``dropout(f(scores))``, in their place; none for padded keys.

    Args:
        kind: f, one of ``KINDS``; of Laplace with the published mean and deviation.
        scores: (batch, queries, keys) with the bias, contiguous, float32 or bfloat16, of a CPU.
        lengths: valid keys of each sequence of the batch.
        p: probability of dropping a weight.
        seed: from :func:`fairseq_csp.ops.dropout.draw_seed`; None where nothing is dropped.

    Returns:
        The scores' tensor.
    """
    torch.ops.fairseq_csp_native.score_weights_(scores, lengths, kind, p, seed)
    return scores


def dropped_weights_backward(
    kind: str,
    scores: Tensor,
    grad: Tensor,
    lengths: Sequence[int],
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Turn scores into the same weights, and the gradient of those into the scores', in place.

    Args:
        kind: as for :func:`dropped_weights`, like the others.
        scores: (batch, queries, keys), the same as there.
        grad: the gradient of the weights, of their shape and dtype, contiguous.
        lengths: valid keys of each sequence of the batch.
        p: probability of dropping a weight.
        seed: the same as there.

    Returns:
        The scores' tensor and that of the gradient.
    """
    backward = torch.ops.fairseq_csp_native.score_weights_backward_
    backward(scores, grad, lengths, kind, p, seed)
    return scores, grad


def add_diagonals(line: Tensor, pairs: Tensor) -> None:
    """Add to each entry of a line the sum of a diagonal of pairs, over the batch too.

    Args:
        line: (rows + columns - 1,), changed: entry ``i + j`` is for row i and column j.
        pairs: (batch, rows, columns), any floating dtype.
    """
    serves = pairs.dtype in (torch.float32, torch.bfloat16) and line.dtype == torch.float32
    if serves and pairs.is_contiguous() and (kernels := native_operators(pairs)):
        kernels.add_diagonals_(line, pairs)
        return
    _, rows, columns = pairs.shape
    total = pairs[0].to(line.dtype) if len(pairs) == 1 else pairs.sum(0, dtype=line.dtype)
    # each row begins one further to the right, so that a diagonal is a column
    width = rows + columns
    shifted = total.new_zeros(rows, width)
    shifted.as_strided((rows, columns), (width + 1, 1)).copy_(total)
    line.add_(shifted.sum(0)[:-1])
