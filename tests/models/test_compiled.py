"""Models under torch.compile: one graph, the same for all lengths."""

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
from fairseq_csp.modules.attention import ATTENTION_REGISTRY
from tests.helpers.building import pixels, small, tokens
from tests.helpers.kernels import use_implementation
from tests.mixers.entries import model_of

ROWS, POSITIONS, BATCHES = 4, 16, 20
# they ask for the lengths on the host, and so break the graph
ASKING = {"agent", "bigbird", "biformer", "fnet", "gau_mixed", "hilo", "kernel_rpe", "linformer"}
ASKING |= {"nystrom"}


def batches():
    """Batches of one padded shape and other lengths; in one of them no row is padded."""
    generator = random.Random(0)
    for seed in range(BATCHES):
        lengths = [POSITIONS, *(generator.randint(1, POSITIONS) for _ in range(ROWS - 1))]
        generator.shuffle(lengths)
        yield tokens([POSITIONS] * ROWS if seed == 7 else lengths, seed=seed)


def passed(model, called, *inputs):
    """The logits and gradients of a batch."""
    out = called(*inputs)
    parameters = [x for x in model.parameters() if x.requires_grad]
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return out, *torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)


def compiled(model, backend="aot_eager"):
    """The model in one graph, and what counts how often it is made."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True), counter


def assert_one_graph(model):
    called, counter = compiled(model)
    for number, (source, lengths) in enumerate(batches()):
        # the tasks give an array
        given = lengths.numpy() if number % 2 else lengths
        found = passed(model, called, source, given)
        for one, other in zip(found, passed(model, model, source, given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    # for arrays and for tensors
    assert counter.frame_count <= 2


@pytest.mark.parametrize("family", ["mega", "transformer", "flash"])
def test_one_graph_for_all_lengths(family):
    assert_one_graph(small(f"{family}_lra_imdb", attention="csp").double())


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("flags", [{"chunk_size": 8}, {"csp_group_size": "full"}], ids=str)
def test_with_either_implementation(kernels, flags, monkeypatch):
    use_implementation(kernels, monkeypatch)
    assert_one_graph(small("mega_lra_imdb", attention="csp", **flags).double())


@pytest.mark.slow
def test_training_with_dropout():
    dropouts = {"dropout": 0.1, "act_dropout": 0.1, "attention_dropout": 0.1}
    model = small("mega_lra_imdb", attention="csp", **dropouts).train()
    called, counter = compiled(model)
    for source, lengths in batches():
        assert all(x.isfinite().all() for x in passed(model, called, source, lengths.numpy()))
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_images():
    model = small("mega_lra_cifar10", attention="csp").double()
    source = pixels(ROWS, 36)[0].double()
    called, counter = compiled(model)
    for one, other in zip(passed(model, called, source), passed(model, model, source), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_two_documents():
    model = small("mega_lra_aan", attention="csp", documents=2).double()
    called, counter = compiled(model)
    for (source, lengths), (source1, lengths1) in zip(batches(), batches(), strict=True):
        inputs = source, lengths.numpy(), source1.flip(0), lengths1.flip(0).numpy()
        for one, other in zip(
            passed(model, called, *inputs), passed(model, model, *inputs), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_every_function(name):
    cls = ATTENTION_REGISTRY[name]
    family = next((f for f, member in FAMILY_REGISTRY.items() if can_take(member, cls)), None)
    if family is None or cls.images_only or name in ASKING:
        pytest.skip("not of one graph")
    model = model_of(family, "imdb", name, keep_padding=False).double().eval()
    called, counter = compiled(model, "eager")
    with torch.no_grad():
        for source, lengths in batches():
            torch.testing.assert_close(called(source, lengths), model(source, lengths))
    assert counter.frame_count <= 2
