"""The table of architectures: values, sizes, flags."""

from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.models import ARCH_CONFIG_REGISTRY

from fairseq_csp.errors import UserError
from fairseq_csp.models.config import flags_without_effect
from fairseq_csp.models.family import FAMILY_REGISTRY, family
from fairseq_csp.models.lra import LRAModel
from fairseq_csp.parameters import count_parameters, table
from tests.helpers.building import FAMILIES, TASKS, build, config, dictionary, small

ROOT = Path(__file__).parent.parent.parent
# spec/models.md: D, H = F, Z, N, layers, classifier out, max positions
MEGA = {
    "listop": (80, 160, 64, 16, 6, 160, 2002),
    "imdb": (128, 256, 64, 16, 4, 256, 4002),
    "aan": (128, 256, 64, 16, 6, 256, 4002),
    "cifar10": (160, 320, 96, 16, 8, 320, 1024),
    "pf32": (128, 256, 64, 16, 6, 256, 1024),
    "pf128": (64, 128, 32, 16, 4, 128, 16384),
}
# D, F, layers, heads, classifier out, max positions
TRANSFORMER = {
    "listop": (512, 2048, 6, 8, 2048, 2002),
    "imdb": (256, 1024, 4, 4, 1024, 4002),
    "aan": (128, 512, 4, 4, 512, 4002),
    "cifar10": (64, 128, 1, 8, 128, 1024),
    "pf32": (128, 128, 1, 4, 256, 1026),
}
# D, H, Z, layers, norm, classifier out, max positions
FLASH = {
    "imdb": (128, 256, 64, 4, "scalenorm", 256, 4002),
    "cifar10": (192, 512, 128, 8, "batchnorm", 512, 1024),
    "pf32": (128, 384, 64, 6, "batchnorm", 384, 1024),
}
OURS = [("flash", "listop"), ("flash", "aan"), ("flash", "pf128"), ("transformer", "pf128")]
OURS += [("lstm", task) for task in TASKS]


def test_all_names():
    names = {f"{family}_lra_{task}" for family in FAMILIES for task in TASKS}
    registered = [arch for member in FAMILY_REGISTRY.values() for arch in member.architectures]
    assert set(registered) == names
    assert names <= set(ARCH_CONFIG_REGISTRY)


@pytest.mark.parametrize("task", MEGA)
def test_published_mega(task):
    cfg = config(f"mega_lra_{task}")
    sizes = (cfg.encoder_embed_dim, cfg.encoder_hidden_dim, cfg.z_dim, cfg.n_dim)
    sizes += (cfg.encoder_layers, cfg.classifier_out_dim, cfg.max_positions)
    assert sizes == MEGA[task]
    assert cfg.encoder_ffn_embed_dim == cfg.encoder_hidden_dim
    assert cfg.sen_rep_type == "mp"
    assert cfg.activation_fn == "silu"
    assert cfg.attention_activation_fn == "relu2"
    assert cfg.truncation_length == (4096 if task == "pf128" else 1024)
    image = {"cifar10": 1024, "pf32": 1024, "pf128": 16384}.get(task)
    assert cfg.chunk_size == (image or -1)
    assert cfg.norm_type == (
        "batchnorm" if image else "scalenorm" if task == "imdb" else "layernorm"
    )


@pytest.mark.parametrize("task", TRANSFORMER)
def test_published_transformer(task):
    cfg = config(f"transformer_lra_{task}")
    sizes = (cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim, cfg.encoder_layers)
    sizes += (cfg.encoder_attention_heads, cfg.classifier_out_dim, cfg.max_positions)
    assert sizes == TRANSFORMER[task]
    assert cfg.encoder_normalize_before
    assert cfg.tie_layer_weights == (task == "listop")
    assert cfg.apply_bert_init == (task in ("listop", "imdb"))


@pytest.mark.parametrize("task", FLASH)
def test_published_flash(task):
    cfg = config(f"flash_lra_{task}")
    sizes = (cfg.encoder_embed_dim, cfg.encoder_hidden_dim, cfg.z_dim, cfg.encoder_layers)
    sizes += (cfg.norm_type, cfg.classifier_out_dim, cfg.max_positions)
    assert sizes == FLASH[task]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_what_follows_from_the_task(family, task):
    cfg = config(f"{family}_lra_{task}")
    assert cfg.input_type == ("text" if task in ("listop", "imdb", "aan") else "image")
    assert cfg.sentence_class_num == (10 if task in ("listop", "cifar10") else 2)
    assert cfg.dropout == cfg.attention_dropout == 0.1
    assert cfg.layer_type == family


@pytest.mark.parametrize(("family", "task"), OURS)
def test_unpublished_sizes_match_mega(family, task):
    assert count_parameters(family, task) == pytest.approx(count_parameters("mega", task), rel=0.15)


def test_published_counts():
    assert count_parameters("mega", "listop") == 602_658
    assert count_parameters("mega", "listop", "csp") == 546_000


def test_counting_is_of_real_models():
    for arch, documents in (("transformer_lra_listop", 1), ("flash_lra_aan", 2)):
        symbols = 25 if documents == 1 else 105
        model = build(arch, symbols=symbols, documents=documents)
        _, _, task = arch.split("_")
        found = sum(p.numel() for p in model.parameters())
        assert found == count_parameters(arch.split("_")[0], task)


def test_documented_table_is_current():
    assert table() in (ROOT / "docs" / "parameters.md").read_text()


def test_feed_forward_width_follows_the_values():
    assert config("mega_lra_aan", encoder_hidden_dim=20).encoder_ffn_embed_dim == 20
    wide = config("mega_lra_aan", encoder_hidden_dim=20, encoder_ffn_embed_dim=30)
    assert wide.encoder_ffn_embed_dim == 30


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("listop", "--attention-activation-fn softmax --norm-type layernorm"),
        ("imdb", "--attention-activation-fn softmax --norm-type scalenorm"),
        ("aan", "--attention-activation-fn softmax --norm-type scalenorm"),
        (
            "pf128",
            "--attention-activation-fn laplace --norm-type syncbatchnorm --warmup-power 2 "
            "--encoder-normalize-before --pixel-normalization 0.5 0.5",
        ),
    ],
)
def test_published_commands_parse(task, words):
    common = """
        --seed 0 --ddp-backend c10d --find-unused-parameters --encoder-layers 3 --n-dim 16
        --chunk-size -1 --activation-fn silu --sen-rep-type mp --criterion lra_cross_entropy
        --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --optimizer adam
        --lr 0.001 --adam-betas (0.9,0.98) --adam-eps 1e-8 --clip-norm 1.0 --dropout 0.2
        --attention-dropout 0.0 --act-dropout 0.0 --weight-decay 0.01 --batch-size 64
        --sentence-avg --update-freq 1 --max-update 90000 --lr-scheduler linear_decay
        --total-num-update 90000 --end-learning-rate 0.0 --warmup-updates 3000
        --warmup-init-lr 1e-07 --keep-last-epochs 1 --required-batch-size-multiple 1
        --max-sentences-valid 64 --log-format simple --log-interval 100 --num-workers 0
        --encoder-embed-dim 16 --encoder-hidden-dim 24 --encoder-ffn-embed-dim 20 --z-dim 8
        --encoder-attention-heads 2 --feature-dropout --truncation-length 512
        --max-positions 500 --rel-pos-bias rotary --normalize-embedding --classifier-layers 2
        --classifier-out-dim 12 --classifier-activation-fn relu --sentence-class-num 7
    """
    kind = "image" if task == "pf128" else "text"
    for name in FAMILIES:
        argv = ["data", "-a", f"{name}_lra_{task}", "--task", f"lra-{kind}", "--input-type", kind]
        args = options.parse_args_and_arch(
            options.get_training_parser(), [*argv, *common.split(), *words.split()]
        )
        for flag, value in {
            "encoder_layers": 3,
            "dropout": 0.2,
            "truncation_length": 512,
            "classifier_layers": 2,
            "sentence_class_num": 7,
            "encoder_ffn_embed_dim": 20,
            "sen_rep_type": "mp",
            "max_positions": 500,
            "chunk_size": -1,
        }.items():
            assert getattr(args, flag) == value, flag


def test_bert_initialisation():
    """It reaches the classifier too, as in the published code."""
    torch.manual_seed(0)
    for bert in (True, False):
        cfg = config("transformer_lra_imdb", apply_bert_init=bert)
        model = LRAModel(cfg, dictionary(25))
        attention = model.encoder.encoder.layers[0].self_attn
        linears = [attention.q_proj, attention.out_proj, model.encoder.encoder.layers[0].fc1]
        linears += [model.classifier[0][0], model.encoder.encoder.embed_tokens]
        for layer in linears:
            assert (layer.weight.std().item() == pytest.approx(0.02, rel=0.05)) == bert


def test_width_of_a_vector():
    lstm, mega = config("lstm_lra_aan"), config("mega_lra_aan")
    assert family("lstm").encoder.vector_dim(lstm) == 2 * lstm.encoder_ffn_embed_dim
    assert family("mega").encoder.vector_dim(mega) == 128


@pytest.mark.parametrize(
    ("arch", "options", "useless"),
    [
        ("mega_lra_imdb", {}, []),
        ("mega_lra_imdb", {"z_dim": 32, "rel_pos_bias": "rotary"}, []),
        ("mega_lra_imdb", {"encoder_attention_heads": 2}, ["--encoder-attention-heads"]),
        (
            "mega_lra_imdb",
            {"attention": "csp", "z_dim": 32, "rel_pos_bias": "rotary", "attention_dropout": 0.0},
            ["--z-dim", "--rel-pos-bias", "--attention-dropout"],
        ),
        (
            "mega_lra_imdb",
            {"attention": "csp", "attention_activation_fn": "softmax"},
            ["--attention-activation-fn"],
        ),
        ("mega_lra_imdb", {"attention": "csp", "csp_shift": "linear"}, []),
        ("mega_lra_imdb", {"csp_shift": "linear"}, ["--csp-shift"]),
        ("transformer_lra_imdb", {"n_dim": 4, "encoder_attention_heads": 2}, ["--n-dim"]),
        ("transformer_lra_imdb", {"attention": "csp", "dropout": 0.2}, []),
        ("flash_lra_imdb", {"chunk_size": 8}, ["--chunk-size"]),
        ("lstm_lra_imdb", {"norm_type": "rmsnorm", "z_dim": 3}, ["--norm-type", "--z-dim"]),
    ],
)
def test_flags_without_effect(arch, options, useless):
    cfg = config(arch, **options)
    cfg._name = arch
    assert set(flags_without_effect(cfg)) == set(useless)


def test_classifier_of_two_documents():
    assert (
        build("mega_lra_aan", documents=2, classifier_in_dim=256).classifier[0][0].in_features
        == 256
    )
    with pytest.raises(UserError, match="--classifier-in-dim is 128"):
        build("mega_lra_aan", documents=2, classifier_in_dim=128)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("lstm_lra_imdb", {"attention": "csp"}, "csp cannot be used in lstm; it has no attention"),
        ("lstm_lra_imdb", {"attention": "softmax"}, "it has no attention: leave the flag out"),
        ("transformer_lra_imdb", {"attention": "nonsense"}, "must be one of .*csp.*laplace"),
        ("transformer_lra_imdb", {"encoder_attention_heads": 3}, "--encoder-attention-heads 3"),
        ("mega_lra_imdb", {"attention": "nonsense"}, "must be one of .*csp.*laplace"),
        ("mega_lra_imdb", {"attention": "csp", "csp_group_size": "0"}, "--csp-group-size is '0'"),
        ("flash_lra_imdb", {"attention": "csp", "csp_group_size": "two"}, "--csp-group-size"),
        ("mega_lra_imdb", {"norm_type": "nonsense"}, "--norm-type is 'nonsense'"),
        ("flash_lra_imdb", {"norm_type": "nonsense"}, "--norm-type is 'nonsense'"),
        ("mega_lra_imdb", {"rel_pos_bias": "rotary", "z_dim": 5}, "--z-dim is 5"),
        ("flash_lra_imdb", {"rel_pos_bias": "rotary", "z_dim": 5}, "--z-dim is 5"),
    ],
)
def test_mistakes(arch, options, message):
    with pytest.raises(UserError, match=message):
        small(arch, **options)
