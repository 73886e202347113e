"""Training by CUDA graphs, with a stand-in for them that does the work again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairseq_csp.errors import UserError
from fairseq_csp.models.graphs import GRAIN, GraphedEncoder
from fairseq_csp.models.lra import LRAModel
from tests.helpers.building import config, dictionary, small


class Again:
    """Does the work again and puts the results where the first ones are, as a graph does."""

    device = "cpu"

    def __init__(self):
        self.recorded = 0

    def warm_up(self, work):
        work()

    def record(self, work):
        self.recorded += 1
        results = list(work())

        def replay():
            with torch.enable_grad():
                again = work()
            for place, new in zip(results, again, strict=True):
                place.copy_(new)

        return replay, results


def graphed(model):
    encoder = model.encoder
    encoder.graphs = GraphedEncoder(
        encoder.encoder, 1 if is_text(model) else None, model.cfg.max_positions, Again
    )
    return model


def is_text(model):
    return model.cfg.input_type == "text"


def batch(model, lengths):
    if not is_text(model):
        return torch.randn(len(lengths), lengths[0]), None
    tokens = torch.randint(4, 9, (len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        tokens[row, length:] = 1
    return tokens, np.array(lengths)


def step(model, tokens, lengths, seed):
    torch.manual_seed(seed)
    loss = F.cross_entropy(model(tokens, lengths), torch.arange(len(tokens)) % 2)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mega_lra_imdb", {"attention": "csp", "attention_dropout": 0.1, "act_dropout": 0.1}),
        ("mega_lra_imdb", {"attention": "softmax"}),
        ("flash_lra_imdb", {"attention": "csp"}),
        ("transformer_lra_imdb", {"attention": "softmax", "sen_rep_type": "mp"}),
        ("mega_lra_cifar10", {"attention": "laplace", "encoder_normalize_before": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["attention"],
)
def test_as_without_graphs(arch, options):
    """Losses and gradients of batches of several shapes, with dropout, two batches an update."""
    plain = small(arch, keep_padding=True, max_positions=GRAIN + 10, **options).train()
    with_graphs = small(arch, keep_padding=True, max_positions=GRAIN + 10, **options).train()
    with_graphs.load_state_dict(plain.state_dict())
    text = is_text(plain)
    rows = [[9, 5, 7], [30, 2, 30], [12, 12, 12], [GRAIN + 3, 4, 9]] if text else [[64] * 3] * 3
    batches = [batch(plain, lengths) for lengths in rows] * 2
    expected = [step(plain, *one, seed) for seed, one in enumerate(batches)]
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    graphed(with_graphs)
    found = [step(with_graphs, *one, seed) for seed, one in enumerate(batches)]
    assert with_graphs.encoder.graphs.recorder.recorded == (2 * 2 if text else 2)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, p in with_graphs.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    for name, buffer in with_graphs.named_buffers():
        torch.testing.assert_close(buffer, dict(plain.named_buffers())[name], msg=name)


def test_dropout_is_drawn_anew():
    model = graphed(small("mega_lra_imdb", attention="csp", dropout=0.5, keep_padding=True).train())
    one = batch(model, [9, 5, 7])
    losses = [step(model, *one, seed) for seed in (0, 0, 1, 0)]
    assert losses[0] == pytest.approx(losses[1]) and losses[1] == losses[3] != losses[2]


def test_second_document_before_the_backward_pass():
    options = {"attention": "csp", "documents": 2, "keep_padding": True}
    plain = small("mega_lra_aan", **options).train()
    other = small("mega_lra_aan", **options).train()
    other.load_state_dict(plain.state_dict())
    graphed(other)
    pair = (*batch(plain, [9, 5]), *batch(plain, [9, 8]))
    gradients = []
    for model in (plain, other):
        for seed in range(3):
            torch.manual_seed(seed)
            model.zero_grad()
            F.cross_entropy(model(*pair), torch.tensor([0, 1])).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert other.encoder.graphs.recorder.recorded == 2
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_a_pass_whose_gradient_nobody_wants():
    model = graphed(small("mega_lra_imdb", attention="csp").train())
    one = batch(model, [9, 5, 7])
    for _ in range(3):
        model(*one)
    assert model.encoder.graphs.recorder.recorded == 2
    # the last one is given up: the next pass goes by the graph
    encoder = model.encoder.graphs
    assert encoder._pending is None or encoder._pending() is None


def test_parameters_elsewhere_are_another_graph():
    model = graphed(small("mega_lra_imdb", attention="csp").train())
    one = batch(model, [9, 5, 7])
    losses = [step(model, *one, seed=0) for _ in range(2)]
    for p in model.parameters():
        p.data = p.data * 2
    losses += [step(model, *one, seed=0) for _ in range(2)]
    assert model.encoder.graphs.recorder.recorded == 4
    assert losses[2] == pytest.approx(losses[3]) and losses[2] != pytest.approx(losses[0])


@pytest.mark.parametrize(
    ("arch", "attention", "who"),
    [("mega_lra_imdb", "nystrom", "nystrom"), ("lstm_lra_imdb", None, "the LSTM")],
)
def test_what_the_host_decides_is_refused(arch, attention, who):
    message = f"--cuda-graphs does not go with {who}, whose work the host decides: leave it out, or"
    task = SimpleNamespace(source_dictionary=dictionary(9), documents=1)
    with pytest.raises(UserError, match=message):
        LRAModel.build_model(config(arch, attention=attention, cuda_graphs=True), task)
