"""The LRA classifier: an encoder of any family and a small head."""

import logging
from argparse import Namespace

import torch
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel, register_model
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from fairseq_csp.errors import UserError
from fairseq_csp.models.config import LRAConfig
from fairseq_csp.models.flash import FlashEncoder
from fairseq_csp.models.lstm import LSTMEncoder
from fairseq_csp.models.mega import MegaEncoder
from fairseq_csp.models.transformer import TransformerEncoder
from fairseq_csp.models.trimming import trimmed_parts
from fairseq_csp.modules.moving_average import shared_kernels
from fairseq_csp.modules.norms import BATCH_NORMS
from fairseq_csp.modules.pointwise import activation
from fairseq_csp.modules.rows import Rows

logger = logging.getLogger(__name__)

ENCODERS = {
    "mega": MegaEncoder,
    "transformer": TransformerEncoder,
    "flash": FlashEncoder,
    "lstm": LSTMEncoder,
}


class LRAEncoder(nn.Module):
    """An encoder of one family, applied without work on padding where that is exact.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
    """

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.encoder = ENCODERS[str(cfg.layer_type)](cfg, dictionary)
        self.trim = not cfg.keep_padding

    def forward(self, source: Tensor, lengths: Tensor | None) -> Tensor:
        """Encode (batch, positions) with lengths (batch,) to (batch, dim).

        Raises:
            ValueError: a length is not between 1 and the number of positions.
        """
        rows = Rows.of(lengths, *source.shape, source.device)
        parts = trimmed_parts(rows.host) if self.trim and not rows.full else []
        if len(parts) == 0:
            return self.encoder(source, rows)
        vectors = []
        for part in parts:
            host = [rows.host[row] for row in part]
            trimmed = source[torch.tensor(part).to(source.device), : max(host)]
            vectors.append(self.encoder(trimmed, Rows(host, max(host), source.device)))
        order = torch.tensor([row for part in parts for row in part]).argsort()
        return torch.cat(vectors)[order.to(source.device)]


@register_model("lra", dataclass=LRAConfig)
class LRAModel(BaseFairseqModel):
    """``classifier(rep(src))``, or ``classifier(rep(src1), rep(src))`` for two documents.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.
        documents: how many documents an example has, 1 or 2.

    Attributes:
        optimizer_is_restored: whether a checkpoint's optimizer state comes with its weights.
    """

    optimizer_is_restored = False

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None, documents: int = 1) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = LRAEncoder(cfg, dictionary)
        width = documents * vector_dim(cfg)
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
    def build_model(cls, cfg: LRAConfig | Namespace, task: FairseqTask) -> "LRAModel":
        """Build the model for a task of this package.

        Raises:
            UserError: flags that do not go together.
        """
        if isinstance(cfg, Namespace):
            # from a caller of fairseq's API that has flags and no configuration
            cfg = LRAConfig.from_namespace(cfg)
        dictionary = task.source_dictionary
        given = "image" if dictionary is None else "text"
        if cfg.input_type != given:
            raise UserError(
                f"--input-type is {cfg.input_type}, but the task's input is {given}: is the "
                "architecture one for this data set?"
            )
        normalises = cfg.layer_type in ("mega", "flash")
        if normalises and dictionary is not None and cfg.norm_type in BATCH_NORMS:
            raise UserError(
                f"--norm-type {cfg.norm_type} would take padding into its statistics: for text "
                "choose layernorm, scalenorm or rmsnorm"
            )
        return cls(cfg, dictionary, documents=task.documents)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        src1_tokens: Tensor | None = None,
        src1_lengths: Tensor | None = None,
    ) -> Tensor:
        """Classify a batch.

        Args:
            src_tokens: (batch, positions) symbols (int64) or pixels (floating).
            src_lengths: (batch,) valid positions of each row; all when None.
            src1_tokens: the second document of each example, of any number of positions.
            src1_lengths: its valid positions.

        Returns:
            Logits (batch, classes).
        """
        with shared_kernels(self.encoder):
            vectors = self.encoder(src_tokens, src_lengths)
            if src1_tokens is not None:
                vectors = torch.cat([self.encoder(src1_tokens, src1_lengths), vectors], dim=1)
        vectors = vectors.to(self.sentence_projection_layer.weight.dtype)
        for layer in self.classifier:
            vectors = self.classifier_activation(layer(vectors))
        return self.sentence_projection_layer(vectors)

    def load_state_dict(
        self, state_dict: dict[str, Tensor], *args: object, **kwargs: object
    ) -> object:
        """Load the weights of a checkpoint.

        Raises:
            UserError: they are those of another architecture or size.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            differences = _differences(state_dict, self.state_dict())
            raise UserError(
                f"the checkpoint does not fit the model: {differences[0]} ({len(differences):,} "
                "such differences); give the data, --arch, --attention and sizes that it was "
                "trained with, or another --save-dir to train anew"
            ) from error

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Drop, with one log line, attention weights that this model has no use for.

        Raises:
            UserError: their optimizer state would be restored.
        """
        prefix = f"{name}." if name else ""
        dropped = sum(
            module.drop_dead_weights(state_dict, f"{prefix}{path}.")
            for path, module in self.named_modules()
            if hasattr(module, "drop_dead_weights")
        )
        if dropped and self.optimizer_is_restored:
            raise UserError(
                f"the checkpoint has {dropped:,} attention weights that --attention "
                f"{self.cfg.attention} lacks, so that its optimizer state does not fit: leave that "
                "out with --reset-optimizer, or start from the weights alone with "
                "--finetune-from-model"
            )
        if dropped:
            logger.info(f"dropped {dropped:,} attention weights that {self.cfg.attention} lacks")


def _differences(loaded: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Tell each parameter that a checkpoint has in another shape, lacks, or has too many."""
    both = [name for name in own if name in loaded]
    return [
        *(
            f"{name} has shape {tuple(loaded[name].shape)} there and {tuple(own[name].shape)} here"
            for name in both
            if loaded[name].shape != own[name].shape
        ),
        *(f"{name} is missing there" for name in own if name not in loaded),
        *(f"{name} is unknown here" for name in loaded if name not in own),
    ]


def vector_dim(cfg: LRAConfig) -> int:
    """Return the channels of one encoded document."""
    return 2 * cfg.encoder_ffn_embed_dim if cfg.layer_type == "lstm" else cfg.encoder_embed_dim


def _xavier_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
