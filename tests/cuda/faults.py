"""Plant faults into a layer, one at a time, and write what the check finds.

python -m tests.cuda.faults LIBRARY
"""

import os
import sys

from tests.cuda import check, device

CELL = check.Cell("mega", "text", "csp", "bf16")


def plants() -> dict:
    """Return by name what is done with values (batch, channels, positions) on the device."""
    import torch

    return {
        "nothing": lambda x: x,
        "number": lambda x: x.sum().item(),
        "condition": lambda x: bool(x.sum() > 0),
        "mask": lambda x: x[x > 0],
        "to the host": lambda x: x.cpu(),
        "blocking copy": lambda x: torch.zeros(3).to(x.device),
        "new tensor": lambda x: torch.tensor([1, 2], device=x.device),
        "index on the host": lambda x: x[torch.zeros(2, dtype=torch.int64)],
        "masked write": lambda x: torch.ops.aten.index_put(x, [x > 0], x.new_ones(())),
        "bfloat16 FFT": lambda x: torch.fft.rfft(x),
        "float16 FFT": lambda x: torch.fft.rfft(x.half()),
        "loop": lambda x: [row * 2 for row in x],
        "launches": lambda x: [x * 2 for _ in range(300)],
        "copies": lambda x: [torch.zeros(3).to(x.device, non_blocking=True) for _ in range(3)],
    }


def main(library: str) -> None:
    """Write a line a fault: the name of what is planted, a tab and the fault."""
    os.environ.setdefault("FAIRSEQ_CSP_KERNELS", "reference")
    device.load(library)
    from torch._subclasses.fake_tensor import FakeTensorMode

    import fairseq_csp.plugin  # noqa: F401 (registers families and functions)
    from fairseq_csp.modules.lengths import SequenceLengths

    device.prepare()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    original = SequenceLengths.zero_padding
    for name, plant in plants().items():

        def zero_padding(self, values, plant=plant):
            if values.device.type == "cuda":
                plant(values)
            return original(self, values)

        SequenceLengths.zero_padding = zero_padding
        for fault in check.check(CELL, fake):
            sys.stdout.write(f"{name}\t{fault}\n")


if __name__ == "__main__":
    main(sys.argv[1])
