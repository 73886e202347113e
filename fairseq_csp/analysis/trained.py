"""Trained models to look into."""

from pathlib import Path

from fairseq import checkpoint_utils
from torch import nn

import fairseq_csp.plugin  # noqa: F401 (registers tasks and models)
from fairseq_csp.errors import UserError


def load(checkpoint: Path, data: Path | None) -> tuple[nn.Module, object]:
    """Return the model of a checkpoint and its task.

    Args:
        checkpoint: written by fairseq-train.
        data: directory of the prepared data; where the model was trained from when None.

    Raises:
        UserError: there is no such checkpoint.
    """
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is not there: name a checkpoint of a training run")
    overrides = {"data": str(data)} if data else {}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    return models[0].eval(), task
