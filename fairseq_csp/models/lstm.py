"""The bidirectional LSTM encoder."""

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fairseq_csp.errors import UserError
from fairseq_csp.models.config import LRAConfig
from fairseq_csp.modules.embeddings import source_embedding
from fairseq_csp.modules.pooling import pool
from fairseq_csp.modules.rows import Rows
from fairseq_csp.ops.dropout import dropout
from fairseq_csp.processor import has_bfloat16


class LSTMEncoder(nn.Module):
    """Embedding, a bidirectional LSTM that never reads padding, and pooling.

    Args:
        cfg: the model's configuration.
        dictionary: symbols of the source; None for images.

    Raises:
        UserError: an attention function is asked for.
    """

    def __init__(self, cfg: LRAConfig, dictionary: Dictionary | None) -> None:
        super().__init__()
        if cfg.attention is not None:
            raise UserError(
                f"--attention is {cfg.attention}, but the LSTM has no attention: leave the flag out"
            )
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

    def forward(self, source: Tensor, rows: Rows) -> Tensor:
        """Encode rows to one vector each.

        Args:
            source: (batch, positions), symbols (int64) or pixels (floating).
            rows: valid positions of each row.

        Returns:
            (batch, 2F), float32 or wider: both directions' last states of the last layer (``cls``)
            or the mean over the positions (``mp``).
        """
        x = dropout(self.embed_tokens(source), self.cfg.dropout, self.training)
        lengths = torch.tensor(rows.host)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        if _in_float32(x):
            with torch.autocast(x.device.type, enabled=False):
                out, (last, _) = self.lstm(packed.float())
        else:
            out, (last, _) = self.lstm(packed)
        if self.cfg.sen_rep_type == "cls":
            return (
                last[-2:].transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float))
            )
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=rows.positions)
        return pool(out.transpose(1, 2), rows, "mp")


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
