"""Models of any architecture, small enough for tests."""

import argparse

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY

import fairseq_csp.plugin  # noqa: F401 (registers the architectures)
from fairseq_csp.models.config import config_class
from fairseq_csp.models.lra import LRAModel

# the models here are too small for more, and tests run beside one another
torch.set_num_threads(1)

TASKS = ("listop", "imdb", "aan", "cifar10", "pf32", "pf128")
TEXT_TASKS = TASKS[:3]
FAMILIES = ("mega", "transformer", "transformer_rope", "flash", "lstm")
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "act_dropout": 0.0}
SMALL = NO_DROPOUT | {
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_hidden_dim": 12,
    "encoder_ffn_embed_dim": 10,
    "encoder_attention_heads": 2,
    "z_dim": 6,
    "n_dim": 3,
    "classifier_out_dim": 9,
    "max_positions": 40,
    "chunk_size": -1,
}


def config(arch, **options):
    """The configuration that fairseq makes of these flags."""
    args = argparse.Namespace(arch=arch, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return config_class().from_namespace(args)


def dictionary(symbols):
    """A dictionary of this size, specials and <CLS> included."""
    made = Dictionary()
    for number in range(symbols - made.nspecial - 1):
        made.add_symbol(f"s{number}")
    made.add_symbol("<CLS>")
    return made


def build(arch, *, symbols=25, documents=1, seed=0, **options):
    """A model with random numbers in all its parameters."""
    cfg = config(arch, **options)
    torch.manual_seed(seed)
    symbols = dictionary(symbols) if cfg.input_type == "text" else None
    model = LRAModel(cfg, symbols, documents=documents)
    with torch.no_grad():
        for parameter in model.parameters():
            # biases and betas start at 0, which would hide a mistake
            parameter += torch.randn_like(parameter) * 0.1
    return model


def small(arch, **options):
    """:func:`build` with the sizes of ``SMALL``."""
    return build(arch, **(SMALL | options))


def tokens(lengths, *, symbols=25, seed=0):
    """A padded batch of symbols, each row ended by EOS."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), 1)
    for row, length in enumerate(lengths):
        batch[row, :length] = torch.randint(4, symbols, (length,), generator=generator)
        batch[row, length - 1] = 2
    return batch, torch.tensor(lengths)


def pixels(images, positions, *, seed=0):
    """A batch of normalised pixels, some of them exactly 0."""
    batch = torch.randn(images, positions, generator=torch.Generator().manual_seed(seed))
    batch[:, :: positions // 3] = 0
    return batch, torch.full((images,), positions)
