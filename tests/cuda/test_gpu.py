"""On real GPUs: python -m pytest -m gpu. Skipped where there is none."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairseq_csp import build_attention, channel_wise_sample_permutation
from fairseq_csp.ops import kernels, native
from fairseq_csp.ops.dropout import draw_seed
from fairseq_csp.ops.ema import circular_kernel, convolve, ema_kernel
from fairseq_csp.ops.norms import layer_norm, rms_norm
from tests.helpers.building import build, small
from tests.helpers.commands import logged, start, training_command
from tests.helpers.kernels import GATES
from tests.mixers.entries import EVERY_CASE
from tests.models.test_golden import GOLDEN, before_training, numbers, options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
UPDATES = 100


@pytest.mark.parametrize("precision", ["float32", "amp", *HALVES])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_numbers(path, precision):
    arrays = np.load(path)
    flags = options(arrays, path.stem)
    documents = 2 if "in/src1_tokens" in arrays.files else 1
    model = build(**flags, symbols=flags["num_symbols"] + 5, documents=documents)
    state = numbers(arrays, "param")
    model.load_state_dict(before_training(state) if flags["training"] else dict(state))
    model = model.train(flags["training"]).to("cuda", HALVES.get(precision))
    inputs = {name: x.cuda() for name, x in numbers(arrays, "in").items()}
    target = inputs.pop("target")
    if precision in HALVES and inputs["src_tokens"].is_floating_point():
        inputs["src_tokens"] = inputs["src_tokens"].to(HALVES[precision])
    with torch.autocast("cuda") if precision == "amp" else nullcontext():
        logits = model(**inputs).float()
    loss = F.cross_entropy(logits, target, reduction="sum")
    loss.backward()
    exact = precision == "float32"
    close = {"rtol": 0, "atol": 1e-4} if exact else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(logits.cpu(), torch.tensor(arrays["out/logits"]), **close)
    expected = numbers(arrays, "grad")
    model.upgrade_state_dict(expected)
    with_gradient = {name: p for name, p in model.named_parameters() if p.grad is not None}
    found = {name: p.grad.float().cpu() for name, p in with_gradient.items()}
    assert found.keys() == expected.keys()
    whole, true = (torch.cat([x[name].flatten() for name in expected]) for x in (found, expected))
    assert torch.cosine_similarity(whole, true, dim=0) > (0.99999 if exact else 0.98)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("group", [1, 2, 3, 8, 9, "full"])
@pytest.mark.parametrize("lengths", [None, [37, 36, 1, 20]], ids=["equal", "ragged"])
@pytest.mark.parametrize("order", ["shift_sort", "sort_shift"])
def test_csp_bit_for_bit(dtype, group, lengths, order):
    generator = torch.Generator().manual_seed(0)
    # with ties and a NaN
    values = torch.randn(4, 37, 19, generator=generator).mul(4).round().to(dtype)
    values[0, 5, 3] = math.nan
    weight = torch.randn(4, 37, 19, generator=generator).to(dtype)
    answers = {}
    for device in ("cpu", "cuda"):
        for descending in (False, True):
            x = values.detach().to(device).requires_grad_()
            out = channel_wise_sample_permutation(
                x, lengths, layer=1, num_layers=3, group_size=group, order=order,
                descending=descending,
            )  # fmt: skip
            out.backward(weight.to(device))
            answers[device, descending] = out.detach().cpu(), x.grad.cpu()
    for descending in (False, True):
        pairs = zip(answers["cpu", descending], answers["cuda", descending], strict=True)
        for one, other in pairs:
            assert torch.equal(one.nan_to_num(99), other.nan_to_num(99))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GATES)
def test_gates_equal_those_of_the_cpu(name, dtype):
    """What is dropped is the same bit for bit."""
    assert native.load() is None and kernels.implementation(torch.device("cuda")) == "triton"
    for shape in ((2, 3, 5), (3, 64, 1100)):
        for p in (0.0, 0.3, 1.0):
            inputs = [(torch.randn(shape) * 3).to(dtype) for _ in range(GATES[name])]
            drawn = () if "product" in name else (p, draw_seed())
            expected = getattr(torch.ops.fairseq_csp_native, name)(*inputs, *drawn)
            found = getattr(torch.ops.fairseq_csp_triton, name)(*(x.cuda() for x in inputs), *drawn)
            expected, found = ([x] if isinstance(x, torch.Tensor) else x for x in (expected, found))
            for one, other in zip(found, expected, strict=True):
                close = {"rtol": 1e-5, "atol": 3e-5} if dtype == torch.float32 else {}
                torch.testing.assert_close(one.cpu(), other, **close)
                if name in ("dropout", "silu_dropout"):
                    assert torch.equal(one.cpu() == 0, other == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "scale_norm"])
def test_norms_as_in_float64(name, dtype):
    assert kernels.implementation(torch.device("cuda")) == "triton"
    for shape in ((2, 5, 3), (3, 130, 1100), (1, 512, 40)):
        x, grad = torch.randn(2, *shape).to(dtype)
        weight, bias = torch.randn(2, 1 if name == "scale_norm" else shape[1]).to(dtype)
        answers = []
        for device, wide in (("cpu", torch.float64), ("cuda", dtype)):
            inputs = [y.to(device, wide).requires_grad_() for y in (x, weight, bias)]
            if name != "layer_norm":
                inputs.pop()
            out = (layer_norm if name == "layer_norm" else rms_norm)(*inputs, 1e-5)
            gradients = torch.autograd.grad(out, inputs, grad.to(device, wide))
            answers.append([y.detach().double().cpu() for y in (out, *gradients)])
        for exact, found in zip(*answers, strict=True):
            close = 1e-5 if dtype == torch.float32 else 0.02
            assert (found - exact).abs().max() <= close * exact.abs().max()


@pytest.mark.parametrize("positions", [1, 60, 1000])
def test_moving_average(positions):
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 1), (8, 3, 1), (8, 3, 1), (8, 3), (4,), (2, 4, positions)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    answers = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        inputs = [x.to(device, dtype).requires_grad_() for x in drawn]
        *parameters, skip, x = inputs
        kernel = ema_kernel(*parameters, positions)
        out = convolve(x, circular_kernel(kernel, skip, positions))
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        answers.append([y.detach().double().cpu() for y in (out, *gradients)])
    for exact, found in zip(*answers, strict=True):
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_every_function_as_on_the_cpu(case):
    """In float64, which no GPU rounds further on its own."""
    torch.manual_seed(0)
    mix = build_attention(case.name, **case.arguments).double().eval()
    grid = case.grid
    positions = grid[0] * grid[1] if grid else 9
    rows = [positions] * 3 if grid else [9, 4, 1]
    widths = [case.arguments["value_dim"]] + [case.arguments["query_dim"]] * 2 * mix.uses_queries
    drawn = [torch.randn(3, positions, width, dtype=torch.float64) for width in widths]
    answers = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).requires_grad_() for x in drawn]
        values, *others = inputs
        out = mix.to(device)(values, rows, *others)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        answers.append([y.detach().cpu() for y in (out, *gradients)])
    for exact, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def train(data, save, *flags, updates=UPDATES, gpus="0"):
    command = [word for word in training_command(data, save, *flags) if word != "--cpu"]
    command += ["--total-num-update", UPDATES, "--max-update", updates]
    process = start(*command, CUDA_VISIBLE_DEVICES=gpus)
    log, _ = process.communicate()
    assert process.returncode == 0, log
    return log, [float(line["loss"]) for line in logged(log, "train_inner")]


@pytest.mark.parametrize("flags", [(), ("--amp",), ("--bf16",), ("--fp16",)], ids="".join)
@pytest.mark.parametrize("attention", ["csp", "softmax"])
def test_training(tiny_listops, tmp_path, flags, attention):
    log, losses = train(tiny_listops, tmp_path / "run", "--attention", attention, *flags)
    # where the scale of float16 overflows an update is left out
    assert len(losses) >= UPDATES - 20
    assert all(map(math.isfinite, losses))
    assert math.isfinite(float(logged(log, "valid")[-1]["valid_loss"]))


@pytest.mark.parametrize("flags", [(), ("--amp",), ("--bf16",), ("--fp16",)], ids="".join)
def test_resuming(tiny_listops, tmp_path, flags):
    _, whole = train(tiny_listops, tmp_path / "whole", *flags, updates=20)
    train(tiny_listops, tmp_path / "halves", *flags, updates=10)
    _, rest = train(tiny_listops, tmp_path / "halves", *flags, updates=20)
    assert rest
    # sums on a GPU are not always made in one order
    assert rest == pytest.approx(whole[-len(rest) :], rel=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("flags", [(), ("--amp",), ("--bf16",), ("--fp16",)], ids="".join)
def test_two_gpus(tiny_listops, tmp_path, flags):
    log, losses = train(tiny_listops, tmp_path / "run", *flags, gpus="0,1")
    assert "training on 2 devices" in log
    assert losses and all(map(math.isfinite, losses))


@pytest.mark.parametrize("precision", ["float32", "bf16", "amp"])
@pytest.mark.parametrize(
    ("arch", "attention"),
    [
        ("mega_lra_imdb", "csp"),
        ("mega_lra_imdb", "softmax"),
        ("transformer_lra_imdb", "softmax"),
        ("flash_lra_imdb", "relu2"),
        ("mega_lra_cifar10", "laplace"),
    ],
)
def test_cuda_graphs_train_as_without(arch, attention, precision):
    """Losses and gradients with dropout, of several shapes, two batches to an update."""
    found = []
    for cuda_graphs in (False, True):
        # what torch itself drops follows from the GPU's generator: alike, but not in one order
        ours = {"attention": attention, "cuda_graphs": cuda_graphs, "max_positions": 600}
        model = small(arch, dropout=0.3 if attention == "csp" else 0.0, **ours).train()
        model = model.to("cuda", HALVES.get(precision))
        for layer in model.classifier:
            layer[1].p = 0.0
        losses = []
        for seed, lengths in enumerate([[9, 5, 7], [300, 2, 30], [12, 12, 12]] * 3):
            torch.manual_seed(seed)
            if arch.endswith("cifar10"):
                inputs = (torch.randn(3, 64).cuda().to(next(model.parameters()).dtype),)
            else:
                tokens = torch.randint(4, 9, (3, max(lengths)))
                for row, length in enumerate(lengths):
                    tokens[row, length:] = 1
                inputs = (tokens.cuda(), np.array(lengths))
            cast = torch.autocast("cuda", torch.bfloat16)
            with cast if precision == "amp" else nullcontext():
                logits = model(*inputs).float()
            loss = F.cross_entropy(logits, torch.tensor([0, 1, 0]).cuda())
            loss.backward()
            losses.append(loss.item())
        whole = torch.cat([p.grad.float().flatten() for p in model.parameters()])
        found.append((losses, whole, list(model.buffers())))
    exact = precision == "float32"
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4 if exact else 0.02)
    likeness = torch.cosine_similarity(found[0][1], found[1][1], dim=0)
    assert likeness > (0.9999 if exact else 0.98)
    norms = [whole.norm().item() for _, whole, _ in found]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3 if exact else 0.1)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("flags", [(), ("--amp",), ("--bf16",), ("--fp16",)], ids="".join)
def test_training_by_cuda_graphs(tiny_listops, tmp_path, flags):
    _, plain = train(tiny_listops, tmp_path / "plain", *flags, updates=30)
    log, graphed = train(tiny_listops, tmp_path / "run", *flags, "--cuda-graphs", updates=30)
    assert "recorded a CUDA graph for batches of 8 x" in log
    assert len(graphed) == len(plain)
    # dropout included; a batch has another number of padded positions, so that sums are rounded
    # otherwise
    assert graphed == pytest.approx(plain, rel=0.1)


def test_resuming_with_cuda_graphs(tiny_listops, tmp_path):
    flags = ("--cuda-graphs", "--bf16")
    _, whole = train(tiny_listops, tmp_path / "whole", *flags, updates=20)
    train(tiny_listops, tmp_path / "halves", *flags, updates=10)
    _, rest = train(tiny_listops, tmp_path / "halves", *flags, updates=20)
    assert rest and rest == pytest.approx(whole[-len(rest) :], rel=0.02)
