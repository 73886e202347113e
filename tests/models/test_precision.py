"""Every cell in bfloat16: autocast and whole models, forward and backward."""

import pytest
import torch

from tests.helpers.building import FAMILIES, TASKS, pixels, small, tokens

ATTENTIONS = {
    "mega": ("softmax", "laplace", "relu2", "csp"),
    "flash": ("softmax", "laplace", "relu2", "csp"),
    "transformer": ("softmax", "laplace", "csp"),
    "transformer_rope": ("softmax", "relu2", "csp"),
    "lstm": (None,),
}
CELLS = [
    pytest.param(family, task, attention, id=f"{family}-{task}-{attention or 'own'}")
    for family in FAMILIES
    for task in TASKS
    for attention in ATTENTIONS[family]
]


def batch(task):
    if task in ("cifar10", "pf32", "pf128"):
        return pixels(4, 16)
    if task == "aan":
        return (*tokens([3, 9, 5], seed=1), *tokens([12, 2, 7], seed=2))
    return tokens([3, 12, 7])


def gradients(model, inputs):
    logits = model(*inputs)
    assert torch.isfinite(logits).all()
    loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros(len(logits)).long())
    loss.backward()
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    return loss.item(), found


@pytest.mark.parametrize("task", TASKS)
def test_an_lstm_under_autocast_without_instructions_is_in_float32(task, monkeypatch):
    inputs = batch(task)
    options = {"documents": 2 if task == "aan" else 1}
    encoded = []

    def encode(*dtype):
        model = small(f"lstm_lra_{task}", **options)
        (lstm,) = (part for part in model.modules() if isinstance(part, torch.nn.LSTM))
        lstm.register_forward_hook(lambda *call: encoded.append(call[2][0].data))
        with torch.autocast("cpu", *dtype, enabled=bool(dtype)):
            return gradients(model, inputs)[0]

    exact = encode()
    # float16 is in no processor's LSTM
    assert encode(torch.float16) == pytest.approx(exact, abs=0.05)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert encode(torch.bfloat16) == pytest.approx(exact, abs=0.05)
    assert {found.dtype for found in encoded} == {torch.float32}


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
@pytest.mark.parametrize(("family", "task", "attention"), CELLS)
def test_close_to_float32(family, task, attention, how):
    options = {"attention": attention, "documents": 2 if task == "aan" else 1}
    inputs = batch(task)
    exact, expected = gradients(small(f"{family}_lra_{task}", **options), inputs)
    model = small(f"{family}_lra_{task}", **options)
    if how == "bfloat16":
        # fairseq casts a sample's floating tensors as well
        inputs = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
        loss, found = gradients(model.bfloat16(), inputs)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, found = gradients(model, inputs)
    assert loss == pytest.approx(exact, abs=0.05)
    assert found.keys() == expected.keys()
    direction = torch.cat([found[name].flatten() for name in expected])
    true = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert torch.cosine_similarity(direction, true, dim=0) > 0.98
