"""Rows laid end to end, and apart again."""

import pytest
import torch

from fairseq_csp.ops.packing import pack_rows, unpack_rows

LENGTHS, COUNTS = [9, 8, 8, 3, 1], [3, 2]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def buckets(dtype, channels=3):
    """Random rows and the buckets they make, with zeros for padding."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(channels, n, generator=generator).to(dtype) for n in LENGTHS]
    parts = [torch.zeros(3, channels, 9, dtype=dtype), torch.zeros(2, channels, 3, dtype=dtype)]
    for row, target in zip(rows, [*parts[0], *parts[1]], strict=True):
        target[:, : row.size(1)] = row
    return torch.cat(rows, dim=1)[None], parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apart_and_together(dtype, every_implementation):
    packed, parts = buckets(dtype)
    found = unpack_rows(packed, LENGTHS, COUNTS)
    assert all(torch.equal(a, b) for a, b in zip(found, parts, strict=True))
    assert torch.equal(pack_rows(parts, LENGTHS), packed)


def test_what_stands_at_padding_is_left_out(every_implementation):
    packed, parts = buckets(torch.float32)
    wider = [torch.nn.functional.pad(part, (0, 4)) for part in parts]
    for part, lengths in zip(wider, (LENGTHS[:3], LENGTHS[3:]), strict=True):
        for row, length in zip(part, lengths, strict=True):
            row[:, length:] = torch.nan
    assert torch.equal(pack_rows(wider, LENGTHS), packed)


def test_any_strides(every_implementation):
    packed, parts = buckets(torch.float32)
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    assert torch.equal(pack_rows(turned, LENGTHS), packed)
    turned = packed.transpose(1, 2).contiguous().transpose(1, 2)
    found = unpack_rows(turned, LENGTHS, COUNTS)
    assert all(torch.equal(a, b) for a, b in zip(found, parts, strict=True))


def test_gradients(every_implementation):
    packed, parts = buckets(torch.float64)
    packed.requires_grad_()
    wider = [torch.nn.functional.pad(part, (0, 2)).requires_grad_() for part in parts]
    assert torch.autograd.gradcheck(lambda x: unpack_rows(x, LENGTHS, COUNTS), packed)
    assert torch.autograd.gradcheck(lambda *parts: pack_rows(parts, LENGTHS), wider)


def test_lengths_of_other_rows_are_refused(every_implementation):
    packed, parts = buckets(torch.float32)
    with pytest.raises(ValueError, match=r"2 rows of 12 positions in buckets of \[2\]"):
        unpack_rows(packed, [9, 3], [2])
    with pytest.raises(ValueError, match=r"buckets of \[3\]"):
        unpack_rows(packed, LENGTHS, [3])
    with pytest.raises(ValueError, match="4 lengths for 5 rows"):
        pack_rows(parts, LENGTHS[:4])
    with pytest.raises(ValueError, match=r"within rows of \[9, 9, 9, 3, 3\] positions"):
        pack_rows(parts, [10, *LENGTHS[1:]])
