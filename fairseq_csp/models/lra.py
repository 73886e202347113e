"""The LRA classifier: an encoder of any family and a small head."""

import dataclasses
import functools
import logging
from argparse import Namespace
from collections.abc import Sequence

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models import (
    BaseFairseqModel,
    register_model,
    register_model_architecture,
)
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.models import family as families
from fairseq_csp.models.config import (
    SharedConfig,
    architecture_values,
    config_class,
    flags_without_effect,
    plain_config,
    renew_flags,
)
from fairseq_csp.models.family import FAMILY_REGISTRY, Family, attention_of, family
from fairseq_csp.models.graphs import GraphedEncoder
from fairseq_csp.models.hub import FromPretrained
from fairseq_csp.models.length_buckets import length_buckets
from fairseq_csp.models.loading import CheckpointLoading
from fairseq_csp.models.tpu import take_back_tpu
from fairseq_csp.modules import attention as attention_functions
from fairseq_csp.modules.attention import ATTENTION_REGISTRY, start_batch
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.moving_average import shared_kernels
from fairseq_csp.modules.norms import BATCH_NORMS
from fairseq_csp.modules.packing import PackedLengths
from fairseq_csp.modules.pointwise import activation
from fairseq_csp.ops.kernels import implementation

logger = logging.getLogger(__name__)

# rows of up to so many positions are packed even where none is padded, if the attention need not
# take them apart: there are many of them, and the kernels take a row, or a part of one, at a time
SHORT_ROWS = 512


class LRAEncoder(nn.Module):
    """An encoder of one family, applied without work on padding where that is exact.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    def __init__(self, cfg: SharedConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        encoder = family(cfg.layer_type).encoder
        self.vector_dim = encoder.vector_dim(cfg)
        self.encoder = encoder(cfg, dictionary)
        self.trim = not cfg.keep_padding
        padding = None if dictionary is None else dictionary.pad()
        self.graphs = None
        if cfg.cuda_graphs:
            self.graphs = GraphedEncoder(self.encoder, padding, cfg.max_positions)

    def forward(
        self, source: Tensor, lengths: Tensor | np.ndarray | Sequence[int] | None
    ) -> Tensor:
        """Encode (batch, positions) with lengths (batch,) to (batch, dim).

        On a CPU the rows of a padded batch are packed where the encoder takes that and there are
        kernels for it, and else go in buckets of similar lengths. On a GPU a padded batch is
        encoded as it is, as a pass costs more there than padding, and so is it in a graph of
        ``torch.compile``, which is the same for all lengths.

        Raises:
            ValueError: a length is not between 1 and the number of positions.
        """
        batch, positions = source.shape
        valid = SequenceLengths.of(lengths, batch, positions, source.device)
        if not batch:
            return torch.zeros(0, self.vector_dim, device=source.device)
        if self.graphs is not None and (graphed := self.graphs(source, valid)) is not None:
            return graphed
        trim = self.trim and source.device.type == "cpu" and not torch.compiler.is_compiling()
        packed = trim and self.encoder.packable and implementation(source.device) == "native"
        if valid.full:
            packed = packed and positions <= SHORT_ROWS and self.encoder.attention_packs()
        if not trim or (valid.full and not packed):
            return self.encoder(source, valid)
        buckets = length_buckets(valid.host)
        apart = [[valid.host[row] for row in bucket] for bucket in buckets]
        if packed:
            rows = [source[row, : valid.host[row]] for bucket in buckets for row in bucket]
            vectors = self.encoder(torch.cat(rows)[None], PackedLengths(apart, source.device))
        else:
            vectors = torch.cat(
                [
                    self.encoder(
                        source[torch.tensor(bucket), : max(own)],
                        SequenceLengths(own, max(own), source.device),
                    )
                    for bucket, own in zip(buckets, apart, strict=True)
                ]
            )
        order = torch.tensor([row for bucket in buckets for row in bucket]).argsort()
        return vectors[order]


@register_model("lra", dataclass=config_class())
class LRAModel(FromPretrained, CheckpointLoading, BaseFairseqModel):
    """``classifier(rep(src))``, or ``classifier(rep(src1), rep(src))`` for two documents.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
        documents: how many documents an example has, 1 or 2.
    """

    def __init__(
        self, cfg: SharedConfig, dictionary: Dictionary | None, documents: int = 1
    ) -> None:
        super().__init__()
        self.cfg = cfg = plain_config(cfg)
        self.encoder = LRAEncoder(cfg, dictionary)
        width = documents * self.encoder.vector_dim
        if cfg.classifier_in_dim not in (None, width):
            raise UserError(
                f"--classifier-in-dim is {cfg.classifier_in_dim}, but {documents} document(s) of "
                f"this encoder give {width} channels: leave the flag out"
            )
        self.classifier = nn.ModuleList()
        for _ in range(cfg.classifier_layers):
            self.classifier.append(
                nn.Sequential(
                    _xavier_linear(width, cfg.classifier_out_dim), nn.Dropout(cfg.dropout)
                )
            )
            width = cfg.classifier_out_dim
        self.classifier_activation = activation(str(cfg.classifier_activation_fn))
        self.sentence_projection_layer = _xavier_linear(width, cfg.sentence_class_num, bias=False)
        if cfg.apply_bert_init:
            self.apply(init_bert_params)

    @classmethod
    def build_model(cls, cfg: SharedConfig | Namespace, task: FairseqTask) -> "LRAModel":
        """Build the model for a task of this package.

        Raises:
            UserError: flags that do not go together.
        """
        if isinstance(cfg, Namespace):
            # from a caller of fairseq's API that has flags and no configuration
            flags = config_class().from_namespace(cfg)
            return cls.build_model(flags, task)
        dictionary = task.source_dictionary
        given = "image" if dictionary is None else "text"
        if cfg.input_type != given:
            raise UserError(
                f"--input-type is {cfg.input_type}, but the task's input is {given}: is the "
                "architecture one for this data set?"
            )
        norms = {item.name for item in dataclasses.fields(family(cfg.layer_type).options)}
        chooses_norm = "norm_type" in norms
        if chooses_norm and dictionary is not None and cfg.norm_type in BATCH_NORMS:
            raise UserError(
                f"--norm-type {cfg.norm_type} would take padding into its statistics: for text "
                "choose layernorm, scalenorm or rmsnorm"
            )
        function = attention_of(cfg)
        if cfg.cuda_graphs and not (function and function.graphable):
            able = [name for name, cls in ATTENTION_REGISTRY.items() if cls.graphable]
            raise UserError(
                f"--cuda-graphs does not go with {function.name if function else 'the LSTM'}, "
                f"whose work the host decides: leave it out, or choose one of {', '.join(able)}"
            )
        if useless := flags_without_effect(cfg):
            attention = attention_of(cfg)
            fixed = tuple(f"--{name}-" for name in attention.refuses) if attention else ()
            if refused := [flag for flag in useless if fixed and flag.startswith(fixed)]:
                raise UserError(
                    f"{', '.join(refused)} cannot be given with --attention {attention.name}, "
                    "which fixes what it sets: leave it out"
                )
            logger.info(
                f"without effect on {cfg.layer_type} with "
                f"{attention.name if attention else 'no'} attention: {', '.join(useless)}"
            )
        return cls(cfg, dictionary, documents=task.documents)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | np.ndarray | Sequence[int] | None = None,
        src1_tokens: Tensor | None = None,
        src1_lengths: Tensor | np.ndarray | Sequence[int] | None = None,
    ) -> Tensor:
        """Classify a batch.

        Args:
            src_tokens: (batch, positions) symbols (int64) or pixels (floating).
            src_lengths: (batch,) valid positions of each row; all when None. The tasks give an
                array, so that a GPU need not be asked for them.
            src1_tokens: the second document of each example, of any number of positions.
            src1_lengths: its valid positions.

        Returns:
            Logits (batch, classes).
        """
        start_batch(self)
        with shared_kernels(self.encoder):
            vectors = self.encoder(src_tokens, src_lengths)
            if src1_tokens is not None:
                vectors = torch.cat([self.encoder(src1_tokens, src1_lengths), vectors], dim=1)
        vectors = vectors.to(self.sentence_projection_layer.weight.dtype)
        for layer in self.classifier:
            vectors = self.classifier_activation(layer(vectors))
        return self.sentence_projection_layer(vectors)


def _xavier_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _register_architectures(member: Family) -> None:
    for name in member.architectures:
        register_model_architecture("lra", name)(functools.partial(_set_defaults, name))
    _renew_flags(member.name)


def _set_defaults(arch: str, args: Namespace | DictConfig) -> None:
    given = vars(args) if isinstance(args, Namespace) else args
    for key, value in architecture_values(arch, given).items():
        setattr(args, key, value)
    take_back_tpu(args)


def _renew_flags(name: str) -> None:
    """Tell fairseq of the flags of what was registered since."""
    renew_flags(LRAModel, "lra", config_class())


for _member in FAMILY_REGISTRY.values():
    _register_architectures(_member)
families.after_registration.append(_register_architectures)
attention_functions.after_registration.append(_renew_flags)
