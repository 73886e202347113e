"""The bidirectional LSTM encoder."""

from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fairseq_csp.models.families._shared import AAN, CIFAR10, IMDB, LISTOP, PF32, PF128
from fairseq_csp.models.family import Encoder, attention_of, register_family
from fairseq_csp.modules.attention import NoOptions
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.lengths import SequenceLengths
from fairseq_csp.modules.pooling import pool
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.processor import has_bfloat16


def _sizes(dim: int, layers: int) -> dict[str, object]:
    return {
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": dim,
        "encoder_layers": layers,
        "classifier_out_dim": dim,
    }


@register_family(
    "lstm",
    options=NoOptions,
    # not published; about as many parameters as the task's MEGA (within 15 %)
    architectures={
        "lstm_lra_listop": LISTOP | _sizes(120, 2),
        "lstm_lra_imdb": IMDB | _sizes(152, 2),
        "lstm_lra_aan": AAN | _sizes(184, 2),
        "lstm_lra_cifar10": CIFAR10 | _sizes(256, 2),
        "lstm_lra_pf32": PF32 | _sizes(184, 2),
        "lstm_lra_pf128": PF128 | _sizes(96, 2),
    },
)
class LSTMEncoder(Encoder):
    """Embedding, a bidirectional LSTM that never reads padding, and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.

    Raises:
        UserError: an attention function is asked for.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary | None) -> None:
        super().__init__()
        attention_of(cfg)
        self.cfg = cfg
        self.embed_tokens = source_embedding(dictionary, cfg.encoder_embed_dim)
        self.lstm = nn.LSTM(
            cfg.encoder_embed_dim,
            cfg.encoder_ffn_embed_dim,
            num_layers=cfg.encoder_layers,
            batch_first=True,
            dropout=cfg.act_dropout if cfg.encoder_layers > 1 else 0.0,
            bidirectional=True,
        )
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    @classmethod
    def vector_dim(cls, cfg: Any) -> int:
        """Return the channels of an encoded row: those of both directions."""
        return 2 * cfg.encoder_ffn_embed_dim

    def forward(self, source: Tensor, lengths: SequenceLengths) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            lengths: valid positions of each row.

        Returns:
            (batch, 2F), float32 or wider: both directions' last states of the last layer (``cls``)
            or the mean over the positions (``mp``).
        """
        x = dropout(self.embed_tokens(source), self.cfg.dropout, self.training)
        packed = pack_padded_sequence(
            x, torch.tensor(lengths.host), batch_first=True, enforce_sorted=False
        )
        if _in_float32(x):
            with torch.autocast(x.device.type, enabled=False):
                out, (last, _) = self.lstm(packed.float())
        else:
            out, (last, _) = self.lstm(packed)
        if self.cfg.sen_rep_type == "cls":
            return (
                last[-2:].transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float))
            )
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=lengths.positions)
        return pool(out.transpose(1, 2), lengths, "mp")


def _in_float32(x: Tensor) -> bool:
    """Tell whether autocast asks for an LSTM that oneDNN has not for this processor.

    It has one in bfloat16 where there are instructions for it, and none in float16.
    """
    device = x.device.type
    return (
        device == "cpu"
        and torch.is_autocast_enabled(device)
        and not (torch.get_autocast_dtype(device) == torch.bfloat16 and has_bfloat16())
    )
