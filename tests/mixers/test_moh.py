"""Mixture of heads: gates, balance loss, and both in a model."""

import copy
import json

import numpy as np
import pytest
import torch

from fairseq_csp import build_attention
from fairseq_csp.errors import UserError
from fairseq_csp.modules.attention import auxiliary_loss
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.transformer_layer import MultiHeadAttention
from tests.helpers.building import small, tokens
from tests.helpers.commands import ROOT, logged, train
from tests.mixers.rows import make, rows_of

ROWS = (9, 1, 5)


def entry(heads=4, dim=16, **options):
    torch.manual_seed(1)
    return build_attention("moh", value_dim=dim, heads=heads, **options).double()


def gates_by_hand(mixer, x, shared, routed):
    """The gates of one position, by a loop."""
    chances = (mixer.wg.weight @ x).softmax(0)
    order = sorted(range(len(chances)), key=lambda head: (-chances[head].item(), head))
    top = order[:routed]
    total = sum(chances[head] for head in top)
    gates = [routed * chances[h] / total if h in top else x[0] * 0 for h in range(len(chances))]
    if shared:
        a, b = 2 * (mixer.wg_0.weight @ x).softmax(0)
        first = (mixer.wg_1.weight @ x).softmax(0) * shared if shared > 1 else x[:1] * 0 + 1
        gates = [a * g for g in first] + [b * g for g in gates]
    return torch.stack(gates), chances, top


@pytest.mark.parametrize(("shared", "routed"), [(0, 1), (0, 4), (1, 2), (2, 1), (3, 1)])
def test_position_by_position(shared, routed):
    mixer = entry(shared=shared, routed=routed, balance=1.0).train()
    (x,) = rows_of(9, [16], rows=3)
    out = mixer(x, torch.tensor(ROWS))
    chances, chosen = torch.zeros(2, 4 - shared, dtype=torch.float64)
    for row, n in enumerate(ROWS):
        q, k, v = (
            part(x[row, :n]).split(4, 1) for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        )
        heads = [(q[h] @ k[h].T / 2).softmax(1) @ v[h] for h in range(4)]
        for i in range(n):
            gates, own, top = gates_by_hand(mixer, x[row, i], shared, routed)
            assert gates.ne(0).sum() == shared + routed
            chances = chances + own
            chosen[top] += 1
            mixed = torch.cat([gate * head[i] for gate, head in zip(gates, heads, strict=True)])
            torch.testing.assert_close(out[row, i], mixer.out_proj(mixed), rtol=0, atol=1e-12)
    count = sum(ROWS)
    expected = (4 - shared) * (chances / count * chosen / count).sum()
    torch.testing.assert_close(mixer.auxiliary_loss(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["moh_a", "moh_no_shared"])
def test_golden_balance_loss(name):
    with np.load(ROOT / "tests" / "golden" / "mixers" / f"{name}.npz") as file:
        options = json.loads(str(file["options"]))
        x = torch.from_numpy(file["in.x"]).transpose(1, 2)
        gates = torch.from_numpy(file["param.wg.weight"])
    mixer = entry(
        options["heads"], x.size(2), shared=options["shared"], routed=options["routed"],
        balance=0.5, num_layers=3,
    ).train()  # fmt: skip
    mixer.wg.weight = torch.nn.Parameter(gates)
    mixer(x)
    loss = mixer.auxiliary_loss()
    # the choices were counted in float32 there
    assert abs(loss.item() - 0.5 / 3 * options["balance_loss"]) < 2e-8
    loss.backward()
    assert mixer.wg.weight.grad.ne(0).any()


def test_gates_sum_to_the_routed_heads():
    mixer = entry(shared=0, routed=3)
    (x,) = rows_of(9, [16], rows=1)
    gates = mixer.gates(x, SequenceLengths((9,), 9, torch.device("cpu")))
    torch.testing.assert_close(gates.sum(2), torch.full((1, 9), 3.0).double())


def test_equal_logits_choose_the_first_heads():
    mixer = entry(heads=8, shared=0, routed=3)
    with torch.no_grad():
        mixer.wg.weight.zero_()
    (x,) = rows_of(2, [16], rows=1)
    gates = mixer.gates(x, SequenceLengths((2,), 2, torch.device("cpu")))
    torch.testing.assert_close(gates, torch.tensor([1.0] * 3 + [0.0] * 5).double().expand(1, 2, 8))


def test_all_heads_equally_are_softmax():
    mixer = entry(shared=0, routed=4)
    with torch.no_grad():
        mixer.wg.weight.zero_()
    plain = MultiHeadAttention(16, make("softmax", value_dim=16, query_dim=16, heads=4)).double()
    state = mixer.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if "proj" in key})
    (x,) = rows_of(7, [16], rows=2)
    lengths = SequenceLengths((7, 4), 7, torch.device("cpu"))
    expected = lengths.zero_padding(plain(x.transpose(0, 1), lengths).permute(1, 2, 0))
    found = mixer(x, torch.tensor([7, 4])).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_means_over_its_batch_and_layers(tied, monkeypatch):
    """Buckets and documents are parts of one batch; a layer that is repeated counts each time."""
    monkeypatch.setattr("fairseq_csp.models.length_buckets.PASS_COST", 5)
    options = {"attention": "moh", "tie_layer_weights": tied, "encoder_attention_heads": 4}
    losses = []
    for keep_padding in (False, True):
        model = small("transformer_lra_imdb", keep_padding=keep_padding, **options).train()
        batch, lengths = tokens([30, 3, 12])
        for _ in range(2):
            model(batch, lengths)
            losses.append(auxiliary_loss(model).item())
        copy.deepcopy(model)
    assert losses == pytest.approx([losses[0]] * 4)
    # r/h of an even use, times the weight
    assert 0.5 * 0.01 * 2 < losses[0] < 3 * 0.01 * 2
    model.eval()
    model(batch, lengths)
    assert auxiliary_loss(model) is None


def test_training_adds_and_logs_it(tiny_listops, tmp_path):
    arguments = ["--arch", "transformer_lra_listop", "--attention", "moh", "--max-update", "2"]
    with_loss, without = (
        logged(
            train(tiny_listops, tmp_path / weight, *arguments, "--moh-balance", weight),
            "train_inner",
        )
        for weight in ("0.5", "0")
    )
    assert float(with_loss[0]["auxiliary_loss"]) > 0.4
    assert float(without[0]["auxiliary_loss"]) == 0
    # the loss itself stays the cross entropy, and the gradient changes
    assert with_loss[0]["loss"] == without[0]["loss"]
    assert with_loss[0]["gnorm"] != without[0]["gnorm"]


def test_parameters():
    plain = 4 * (16**2 + 16)
    for shared, extra in ((0, 16 * 4), (1, 16 * 3 + 2 * 16), (3, 16 + 2 * 16 + 3 * 16)):
        mixer = entry(shared=shared, routed=1)
        assert sum(p.numel() for p in mixer.parameters()) == plain + extra


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": 4}, "--moh-shared is 4; with 4 heads it must be 0 to 3"),
        ({"shared": -1}, "--moh-shared is -1"),
        ({"shared": 2, "routed": 3}, "--moh-routed is 3; with 2 heads .* must be 1 to 2"),
        ({"routed": 0}, "--moh-routed is 0"),
        ({"balance": -1}, "--moh-balance is -1; it must be at least 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        entry(**options)
