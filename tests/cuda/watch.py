"""What a GPU must not be asked for, seen on fake tensors."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches import ALLOCATIONS
from fairseq_csp.ops.csp import operators

ROOT = Path(__file__).resolve().parents[2]
PROJECT = str(ROOT / "fairseq_csp")
# several views at once are none to PyTorch
FREE = (*ALLOCATIONS, "detach", "detach_", "unbind", "split", "split_with_sizes", "lift_fresh")
COPIES = ("_to_copy", "copy_", "_pin_memory")
# their results' sizes, or a check of theirs, are known on the host alone
ASKING = (
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "linalg_inv", "linalg_svd",
)  # fmt: skip
HALVES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.complex32: "complex32",
}


@dataclass(frozen=True)
class Fault:
    """What is wrong, and on which line of the project."""

    kind: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}"


class Watch(TorchDispatchMode):
    """Collect faults and count launches of what runs inside it.

    Attributes:
        faults: what was found.
        phase: what runs: ``forward``, ``backward``, ``update``, ``evaluation``. In an update only
            the project's own lines are looked at: fairseq asks there for the norm of the gradients.
        launches: by phase, calls that are no views and do more than make room.
        host_copies: by phase, copies from the host that the host does not wait for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Fault] = []
        self.phase = "forward"
        self.launches: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.host_copies: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if function.namespace == "fairseq_csp":
            # what the operator does, rather than the shapes it gives
            with torch.no_grad(), self:
                return getattr(operators, name)._init_fn(*args, **kwargs)
        self._look(name, args, kwargs)
        try:
            result = function(*args, **kwargs)
        except DataDependentOutputException:
            # what was computed has no value; the run goes on with some
            return {torch.bool: False}.get(args[0].dtype, 1)
        counted = not function.is_view and name not in FREE
        if counted and any(x.device.type == "cuda" for x in _tensors(result)):
            self.launches[self.phase] += 1
            if self.phase in ("forward", "backward"):
                self.lines[place(sys._getframe())] += 1
        return result

    def _look(self, name: str, args: tuple, kwargs: dict) -> None:
        tensors = _tensors((args, kwargs))
        devices = {x.device.type for x in tensors}
        if name in COPIES:
            self._look_at_copy(name, args, kwargs)
        elif "cuda" in devices and any(x.device.type == "cpu" and x.dim() for x in tensors):
            self.fault(f"{name} of tensors on the device and on the host")
        if "cuda" not in devices:
            return
        masks = [x for x in _tensors(args[1:2]) if x.dtype in (torch.bool, torch.uint8)]
        if name == "_local_scalar_dense" or name in ASKING:
            self.fault(f"{name}: the host waits for the device")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and masks:
            self.fault(f"{name} by a mask: the host waits for the device")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.fault(f"{name} without its output's size: the host waits for the device")
        if name.startswith("_fft_") and tensors[0].dtype in HALVES:
            self.fault(f"{name} in {HALVES[tensors[0].dtype]}")

    def _look_at_copy(self, name: str, args: tuple, kwargs: dict) -> None:
        if name == "copy_":
            target, source = args[0].device.type, args[1].device.type
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        else:
            source = args[0].device.type
            target = torch.device(kwargs.get("device") or source).type
            blocking = not kwargs.get("non_blocking")
        if (source, target) == ("cuda", "cpu"):
            self.fault(f"{name} to the host: the host waits for the device")
        if (source, target) == ("cpu", "cuda"):
            if blocking:
                self.fault(f"{name} to the device without non_blocking")
            else:
                self.host_copies[self.phase] += 1

    def fault(self, kind: str) -> None:
        """Note a fault of the operator that is called now."""
        where = place(sys._getframe())
        if self.phase == "update" and not where.startswith("fairseq_csp/"):
            return
        self.faults.append(Fault(f"{kind} ({self.phase})", where))


def place(frame: FrameType | None) -> str:
    """Return file and line of the project that a frame was called by."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PROJECT):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    return f"PyTorch's {node.name()}" if node is not None else "outside the project"


def _tensors(values: object) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]
