"""The operator's gradient: the inverse permutation of the incoming one."""

from torch import Tensor
from torch.autograd.function import Function, FunctionCtx, once_differentiable

from fairseq_csp.ops.csp import eager
from fairseq_csp.ops.csp.eager import Permutation, contiguous


def permute(values: Tensor, permutation: Permutation) -> Tensor:
    """Permute (batch, channels, positions), any floating dtype; contiguous, the same dtype."""
    return _Permute.apply(values, permutation)


class _Permute(Function):
    """Of the sort only what undoes it is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, permutation: Permutation) -> Tensor:
        ctx.permutation = permutation
        ctx.positions_first = values.stride(1) == 1 < values.stride(2)
        ctx.blocks = eager.divide(values, permutation.lengths)
        out, *kept = eager.permute(values, permutation, ctx.blocks)
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        grad = eager.restore(grad, ctx.permutation, ctx.blocks, ctx.saved_tensors)
        if ctx.positions_first:
            # as the values lie in memory, so that nothing copies it again to add it up
            grad = contiguous(grad.transpose(1, 2)).transpose(1, 2)
        return grad, None
