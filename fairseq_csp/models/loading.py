"""Loading the weights of checkpoints: what does not fit is dropped with a log line, or refused."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fairseq_csp.errors import UserError

logger = logging.getLogger(__name__)


class CheckpointLoading(nn.Module):
    """A model that says in a sentence which weights do not fit, and drops those without a use.

    Attributes:
        optimizer_is_restored: whether a checkpoint's optimizer state comes with its weights.
    """

    optimizer_is_restored = False

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the weights of a checkpoint.

        Raises:
            UserError: they are those of another architecture or size.
        """
        state_dict = dict(state_dict)
        self.upgrade_state_dict_named(state_dict, "")
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
