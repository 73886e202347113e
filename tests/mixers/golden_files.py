"""Golden files of the mixers: outputs and gradients of public reference code, see their README."""

import json
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.helpers.commands import ROOT

FOLDER = ROOT / "tests" / "golden" / "mixers"


class Golden(NamedTuple):
    """One file, positions before channels as ``build_attention`` takes them."""

    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    out: Tensor
    grad_out: Tensor
    lengths: Tensor
    options: dict


def golden(name: str) -> Golden:
    """Read a file; heads are joined into the channels, and what is at padding is made NaN."""
    with np.load(FOLDER / f"{name}.npz") as file:
        raw = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind in "if"}
        options = json.loads(str(file["options"]))
    lengths = raw["lengths"]
    inputs = {key: _rows(raw[f"in.{key}"]) for key in "qkvx" if f"in.{key}" in raw}
    for x in inputs.values():
        for row, length in enumerate(lengths):
            x[row, length:] = torch.nan
    start = "grad."
    return Golden(
        inputs,
        {key[6:]: value for key, value in raw.items() if key.startswith("param.")},
        {
            key.removeprefix(start): _rows(value) if key.startswith("grad.in.") else value
            for key, value in raw.items()
            if key.startswith(start)
        },
        _rows(raw["out"]),
        _rows(raw["grad_out"]),
        lengths,
        options,
    )


def _rows(x: Tensor) -> Tensor:
    """Put the positions of (batch, channels, positions) first, the heads joined."""
    return (x.flatten(1, 2) if x.dim() == 4 else x).transpose(1, 2).clone()


def check(file: Golden, call, parameters: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Compare output and gradients.

    Args:
        file: what was read.
        call: from the file's inputs by name, and lengths, to (batch, positions, channels).
        parameters: by the file's name what corresponds to each parameter.
        tolerance: absolute, of outputs and gradients.
    """
    inputs = {name: x.clone().requires_grad_() for name, x in file.inputs.items()}
    out = call(inputs, file.lengths)
    torch.testing.assert_close(out, file.out, rtol=0, atol=tolerance)
    (out * file.grad_out).sum().backward()
    assert set(parameters) == set(file.parameters)
    for name, expected in file.gradients.items():
        kind, _, key = name.partition(".")
        found = inputs[key].grad if kind == "in" else parameters[key].grad
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
