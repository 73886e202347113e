"""fairseq's hub convention: ``Model.from_pretrained(NAME)``."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairseq_csp.predictor import Predictor


class FromPretrained:
    """A model class whose trained models can be asked for by name."""

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | os.PathLike[str],
        checkpoint_file: str = "checkpoint_best.pt",
        data_name_or_path: str | os.PathLike[str] | None = None,
        **overrides: object,
    ) -> "Predictor":
        """Load a trained model with the encoding of its inputs.

        Args:
            model_name_or_path: name of published weights, a checkpoint, or directory of a run.
            checkpoint_file: which file of the directory.
            data_name_or_path: directory of its data, where the checkpoint does not tell enough.
            **overrides: flags that replace those of the checkpoint.

        Returns:
            :class:`fairseq_csp.predictor.Predictor`, in evaluation mode: ``predict(texts)``, and
            the model as ``model``.

        Raises:
            UserError: it is not there, is no whole checkpoint, or holds another kind of model.
        """
        # it is made of all kinds of models
        from fairseq_csp.errors import UserError
        from fairseq_csp.predictor import load

        path = model_name_or_path
        if os.path.isdir(path):
            path = os.path.join(path, checkpoint_file)
        loaded = load(path, data_name_or_path, overrides)
        if not isinstance(loaded.model, cls):
            raise UserError(f"{path} holds a {type(loaded.model).__name__}, no {cls.__name__}")
        return loaded
