"""Outputs and gradients of public reference code (tests/golden/mixers)."""

import json

import numpy as np
import pytest
import torch

from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from fairseq_csp.modules.standalone import build_attention
from tests.helpers.commands import ROOT
from tests.mixers.entries import GOLDEN

FILES = sorted((ROOT / "tests" / "golden" / "mixers").glob("*.npz"))


def read(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


class Noting(dict):
    """A dictionary that notes which of its entries were used."""

    def __init__(self, *args):
        super().__init__(*args)
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("dtype", [torch.double, torch.float], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem.split("_")[0] in GOLDEN], ids=lambda path: path.stem
)
def test_golden(path, dtype):
    name = path.stem.split("_")[0]
    golden, data = GOLDEN[name], read(path)
    options = json.loads(str(data["options"]))
    lengths = torch.from_numpy(data["lengths"]).long()
    tensors = {
        key: torch.from_numpy(value).to(dtype)
        for key, value in data.items()
        if key not in ("options", "source", "lengths")
    }
    inputs = {
        key.removeprefix("in."): value.clone().requires_grad_()
        for key, value in tensors.items()
        if key.startswith("in.")
    }
    parameters = {
        key.removeprefix("param."): value.clone().requires_grad_()
        for key, value in tensors.items()
        if key.startswith("param.")
    }
    theirs = Noting(parameters)

    def project(role, x):
        whole, _, third = golden.projections[role].partition(":")
        weight, bias = (theirs[f"{whole}.{kind}"] for kind in ("weight", "bias"))
        weight = weight.t() if "x @ weight" in options.get("weights", "") else weight
        if third:
            weight, bias = (x.chunk(3)[int(third)] for x in (weight, bias))
        return torch.nn.functional.linear(x, weight, bias)

    heads = options.get("heads") or (inputs["q"].size(1) if "q" in inputs else 1)
    if golden.projections:
        x = inputs["x"].transpose(1, 2)
        called = [project(role, x) for role in "vqk"]
    else:
        called = [inputs[role].flatten(1, -2).transpose(1, 2) for role in "xvqk" if role in inputs]
    sizes = {"value_dim": called[0].size(2), "heads": heads}
    if len(called) > 1:
        sizes["query_dim"] = called[1].size(2)
    module = build_attention(
        name,
        max_positions=options.get("max_positions", called[0].size(1)),
        grid=tuple(options["grid"]) if "grid" in options else None,
        **sizes,
        **golden.options(options),
    ).to(dtype)
    own = {}
    for key, value in module.state_dict().items():
        source = golden.parameters.get(key, key)
        own[key] = (source(theirs) if callable(source) else theirs[source]).reshape(value.shape)
    out = torch.func.functional_call(module.eval(), own, (called[0], lengths, *called[1:]))
    if "out" in golden.projections:
        out = project("out", out)
    assert theirs.used == set(parameters)
    mask = torch.arange(out.size(1)) < lengths[:, None]
    out = (out * mask[:, :, None]).transpose(1, 2).reshape(tensors["out"].shape)
    (out * tensors["grad_out"]).sum().backward()
    found = {"out": out}
    found |= {f"grad.in.{key}": value.grad for key, value in inputs.items()}
    found |= {f"grad.param.{key}": value.grad for key, value in parameters.items()}
    tolerance = golden.tolerance if dtype == torch.double else max(1e-5, golden.tolerance)
    # some gradients are nothing but rounding, so that the largest of all is the measure
    largest = max(tensors[key].abs().max() for key in found if key != "out" and key in tensors)
    for key, value in found.items():
        if key not in tensors:
            continue
        expected = tensors[key]
        assert value is not None, key
        scale = expected.abs().max() if key == "out" else largest
        error = (value - expected).abs().max() / scale
        assert error < tolerance, f"{key} is {error:.1e} of its largest number off"


def test_every_golden_file_has_an_entry():
    assert {path.stem.split("_")[0] for path in FILES} <= set(ATTENTION_REGISTRY) & set(GOLDEN)
