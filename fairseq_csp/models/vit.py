"""The Vision Transformer (arXiv 2010.11929) with attention or CSP between the patches.

The forward pass, initialisation and state-dict names are those of the vision half of the CSP
authors' code (arXiv 2410.10914). Needs neither fairseq nor data::

    model = ViTModel(ViTConfig(image_size=32, patch_size=4, attention="csp"))
    logits = model(images)  # normalised, (batch, channels, height, width)
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.models.family import attention_options, option_key
from fairseq_csp.models.loading import CheckpointLoading
from fairseq_csp.modules.attention import (
    ATTENTION_REGISTRY,
    AttentionContext,
    AttentionFunction,
    HeadAttention,
    attention_class,
    make_attention,
    start_batch,
)
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.ops.gates import dropout_add

POOLINGS = ("mp", "cls", "max")
SOFTMAX = "softmax"
# for attention functions that name the families of encoders they are for
FAMILY = "vit"


def flag(default: object, text: str) -> Any:
    """Declare an option by its default and its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class SharedConfig:
    """Options that do not belong to an attention function.

    Sizes of images and patches are a number, or two as ``(height, width)`` or ``HEIGHTxWIDTH``.
    """

    attention: Optional[str] = flag(  # noqa: UP045 (fairseq reads the annotation)
        None, "what mixes the patches, by its registered name (default: softmax)"
    )
    image_size: Any = flag(32, "pixels of an image: a number, or HEIGHTxWIDTH")
    patch_size: Any = flag(4, "pixels of a patch: a number, or HEIGHTxWIDTH")
    image_channels: int = flag(3, "channels of an image")
    sentence_class_num: int = flag(10, "number of classes")
    encoder_layers: int = flag(6, "number of layers")
    encoder_embed_dim: int = flag(512, "model channels")
    encoder_ffn_embed_dim: int = flag(512, "channels inside a feed-forward block")
    encoder_attention_heads: int = flag(8, "attention heads")
    head_dim: int = flag(64, "channels of a head; heads times these are the values' channels")
    dropout: float = flag(0.1, "probability of dropping a number of a block, or a weight")
    embedding_dropout: float = flag(0.1, "probability of dropping a number of the embedding")
    sen_rep_type: str = flag("mp", "an image's vector: mean (mp), maximum (max), or class token")


def _options_of_functions() -> list[tuple[str, Any, Any]]:
    """Return name, type and field of each option of the attention functions."""
    found = []
    for cls in ATTENTION_REGISTRY.values():
        for item in dataclasses.fields(cls.options_type):
            key = option_key(cls, item)
            default = OTHER_DEFAULTS.get(key, item.default)
            found.append((key, Any, flag(default, item.metadata["help"])))
    return found


# as published for images
OTHER_DEFAULTS = {"csp_shift": "linear"}
ViTConfig = dataclasses.make_dataclass(
    "ViTConfig",
    _options_of_functions(),
    bases=(SharedConfig,),
    namespace={
        "__module__": __name__,
        "__doc__": "Options of a Vision Transformer: the shared ones, and as ``csp_shift`` those "
        "of each attention function.",
    },
)


def pair(value: Any, flag: str) -> tuple[int, int]:
    """Read a size that is one number or two.

    Args:
        value: a number, a sequence of two, or text such as ``32`` or ``32x16``.
        flag: how to call it in a message.

    Returns:
        Height and width, at least 1.

    Raises:
        UserError: it is something else.
    """
    words = value.replace("x", ",").split(",") if isinstance(value, str) else value
    words = [words] if isinstance(words, int) else list(words)
    try:
        height, width = (int(word) for word in (words * 2 if len(words) == 1 else words))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise UserError(f"{flag} is {value}; it must be a number of pixels, or HEIGHTxWIDTH")
    return height, width


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`fairseq_csp.ops.dropout.dropout`, which is faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape and dtype of ``x``."""
        return dropout(x, self.p, self.training)


class Patches(nn.Module):
    """Cut images into patches in reading order; a patch is flattened row by row, channels last."""

    def __init__(self, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, patches, numbers of a patch) of (batch, channels, height, width)."""
        height, width = self.patch
        tiles = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Mixing(nn.Module):
    """``W_o mix(W_qkv x)``, added to a residual: what mixes the tokens of an image.

    Args:
        cfg: the model's configuration.
        context: where the layer stands, for its attention function.

    Raises:
        UserError: there is no such attention function, or an option of it is bad.
    """

    def __init__(self, cfg: SharedConfig, context: AttentionContext) -> None:
        super().__init__()
        dim, self.width = cfg.encoder_embed_dim, context.value_dim
        cls = _attention_class(cfg)
        self.to_qkv: nn.Linear | None = None
        out: nn.Module = Dropout(cfg.dropout)
        if issubclass(cls, HeadAttention):
            # brings linear maps of its own
            context = dataclasses.replace(context, value_dim=dim, query_dim=dim)
        else:
            self.parts = 3 if cls.uses_queries else 1
            self.to_qkv = nn.Linear(dim, self.parts * self.width, bias=False)
            if context.heads == 1 and self.width == dim:
                out = nn.Identity()
            else:
                out = nn.Sequential(nn.Linear(self.width, dim), out)
        self.to_out = out
        self.mix = make_attention(cls.name, context, attention_options(cfg, cls))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map twice (batch, tokens, dim) to the same shape."""
        batch, tokens, _ = x.shape
        lengths = SequenceLengths((tokens,) * batch, tokens, x.device)
        if self.to_qkv is None:
            mixed = self.mix(x.transpose(1, 2), lengths)
        else:
            *queries_and_keys, values = self.to_qkv(x).transpose(1, 2).chunk(self.parts, dim=1)
            mixed = self.mix(values, lengths, *queries_and_keys)
        return _add(mixed.transpose(1, 2), self.to_out, residual)

    def drop_dead_weights(self, state_dict: dict[str, Tensor], prefix: str) -> int:
        """Keep the values' rows alone of attention weights, where there are no queries and keys.

        Args:
            state_dict: a state dict in which this module's names start with ``prefix``; changed.
            prefix: with the dot at its end.

        Returns:
            How many numbers were dropped.
        """
        name = f"{prefix}to_qkv.weight"
        weight = state_dict.get(name)
        values_alone = self.to_qkv is not None and self.parts == 1
        if not values_alone or weight is None or weight.size(0) != 3 * self.width:
            return 0
        state_dict[name] = weight[-self.width :].clone()
        return weight[: -self.width].numel()


def _attention_class(cfg: SharedConfig) -> type[AttentionFunction]:
    """Return the attention function of a configuration.

    Raises:
        UserError: there is none of that name, or it is for other families of encoders.
    """
    cls = attention_class(cfg.attention or SOFTMAX)
    if cls.families is not None and FAMILY not in cls.families:
        raise UserError(
            f"--attention {cls.name} cannot be used in {FAMILY}; it is for "
            f"{', '.join(cls.families)}"
        )
    return cls


class FeedForward(nn.Module):
    """Two linear maps with the exact GELU between them, added to a residual.

    Args:
        dim: model channels.
        hidden_dim: channels inside.
        p: probability of dropping a hidden number, or one that comes out.
    """

    def __init__(self, dim: int, hidden_dim: int, p: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            Dropout(p),
            nn.Linear(hidden_dim, dim),
            Dropout(p),
        )

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map twice (batch, tokens, dim) to the same shape."""
        return _add(x, self.net, residual)


def _add(x: Tensor, net: nn.Module, residual: Tensor) -> Tensor:
    """Add ``net(x)`` to a residual, in one pass with the dropout that the net may end in."""
    if isinstance(net, nn.Sequential):
        x, net = net[:-1](x), net[-1]
    if isinstance(net, Dropout):
        return dropout_add(x, residual, net.p, net.training)
    return residual + net(x)


class Prenorm(nn.Module):
    """Layer norm before a block, and the residual around both."""

    def __init__(self, dim: int, block: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        return self.fn(self.norm(x), x)


class Encoder(nn.Module):
    """The layers; no norm behind the last one.

    Args:
        cfg: the model's configuration.
        tokens: tokens of an image.
        grid: rows and columns of its patches; None where there is a class token among them.
    """

    def __init__(self, cfg: SharedConfig, tokens: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        dim, width = cfg.encoder_embed_dim, cfg.encoder_attention_heads * cfg.head_dim
        context = AttentionContext(
            value_dim=width,
            query_dim=width,
            heads=cfg.encoder_attention_heads,
            max_positions=tokens,
            grid=grid,
            num_layers=cfg.encoder_layers,
            dropout=cfg.dropout,
        )
        self.layers = nn.ModuleList(
            nn.Sequential(
                Prenorm(dim, Mixing(cfg, dataclasses.replace(context, layer=layer))),
                Prenorm(dim, FeedForward(dim, cfg.encoder_ffn_embed_dim, cfg.dropout)),
            )
            for layer in range(cfg.encoder_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class ViTModel(CheckpointLoading):
    """Patches, positions, pre-norm layers, pooling and a linear head.

    Args:
        cfg: its options.

    Attributes:
        image_size: height and width of an image.
        grid: rows and columns of its patches.
        tokens: tokens of an image, the class token included.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(self, cfg: SharedConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.image_size = pair(cfg.image_size, "--image-size")
        patch = pair(cfg.patch_size, "--patch-size")
        if any(size % side for size, side in zip(self.image_size, patch, strict=True)):
            raise UserError(
                f"--patch-size {_shown(patch)} does not divide images of "
                f"{_shown(self.image_size)} pixels: choose one that divides height and width"
            )
        if cfg.sen_rep_type not in POOLINGS:
            raise UserError(
                f"--sen-rep-type is {cfg.sen_rep_type!r}; it must be one of {', '.join(POOLINGS)}"
            )
        self.grid = (self.image_size[0] // patch[0], self.image_size[1] // patch[1])
        patches = self.grid[0] * self.grid[1]
        has_token = cfg.sen_rep_type == "cls"
        self.tokens = patches + has_token
        dim = cfg.encoder_embed_dim
        # published: one row more than there are patches, and a class token, used or not
        self.pos_embedding = nn.Parameter(torch.randn(1, patches + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim), requires_grad=has_token)
        self.to_patch_embedding = nn.Sequential(
            Patches(patch), nn.Linear(patch[0] * patch[1] * cfg.image_channels, dim)
        )
        self.dropout = Dropout(cfg.embedding_dropout)
        self.transformer = Encoder(cfg, self.tokens, None if has_token else self.grid)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, cfg.sentence_class_num))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (batch, channels, height, width), normalised, floating.

        Returns:
            Logits (batch, classes).

        Raises:
            ValueError: the images are not of the model's size.
        """
        expected = (self.cfg.image_channels, *self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(images.shape)}"
            )
        start_batch(self)
        x = self.to_patch_embedding(images)
        if self.cfg.sen_rep_type == "cls":
            x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        x = self.dropout(x + self.pos_embedding[:, : self.tokens])
        return self.mlp_head(self._pool(self.transformer(x)))

    def _pool(self, x: Tensor) -> Tensor:
        if self.cfg.sen_rep_type == "mp":
            return x.mean(dim=1)
        return x[:, 0] if self.cfg.sen_rep_type == "cls" else x.amax(dim=1)


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _sizes(dim: int, ffn: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
    }


def _images(size: int, patch: int, channels: int, classes: int) -> dict[str, int]:
    return {
        "image_size": size,
        "patch_size": patch,
        "image_channels": channels,
        "sentence_class_num": classes,
    }


PUBLISHED = _sizes(512, 512, 6, 8)
DEIT_SMALL = _sizes(384, 1536, 12, 6)
# the first four from the authors' configuration, but for the width of the second
ARCHITECTURES: dict[str, dict[str, int]] = {
    "vit_cifar10": _images(32, 4, 3, 10) | PUBLISHED,
    # as many parameters with CSP as vit_cifar10 with attention
    "vit_cifar10_wide": _images(32, 4, 3, 10) | _sizes(512, 512, 6, 16),
    "vit_cifar100": _images(32, 2, 3, 100) | PUBLISHED,
    "vit_mnist": _images(28, 2, 1, 10) | PUBLISHED,
    # ours, for a processor of few cores
    "vit_cifar_small": _images(32, 4, 3, 10) | _sizes(192, 384, 6, 3),
    # sizes from the Sliceformer authors' sheet; the patch is ours
    "vit_tiny_imagenet": _images(64, 4, 3, 200) | DEIT_SMALL,
    # ours: nothing was published for it
    "vit_imagenet": _images(224, 16, 3, 1000) | DEIT_SMALL,
}
