"""A trained model and the encoding of its inputs: texts or images in, classes out.

What a checkpoint needs beyond its weights, it keeps itself: symbols and classes, where texts are
cut, sizes and normalisation of images. Without them the numbers mean nothing, and they are a few
hundred bytes; who has the checkpoint need not prepare data that may be gigabytes. The exception is
a SentencePiece model, hundreds of kilobytes, which stays with the data.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.data import ListDataset
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from omegaconf import DictConfig
from torch import Tensor, nn

import fairseq_csp.plugin  # noqa: F401 (registers tasks and models)
from fairseq_csp.data import images, pixels
from fairseq_csp.data.augmentation import centre_crop
from fairseq_csp.data.files import open_file, read_whole
from fairseq_csp.errors import UserError
from fairseq_csp.pretrained import checkpoint_of
from fairseq_csp.tasks.image_classification import ImageClassificationTask
from fairseq_csp.tasks.lra_image import LRAImageTask
from fairseq_csp.tasks.lra_text import LRATextTask
from preprocess import listops
from preprocess.image_sets import decode
from preprocess.images import read_image, to_grey
from preprocess.text_format import ids_of
from preprocess.tokenizers import (
    MAX_LENGTH,
    SENTENCEPIECE_FILE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)

# the most characters of an input in a message
_SHOWN = 40


@dataclass(frozen=True)
class Prediction:
    """What a model says of an input.

    Attributes:
        name: of the most probable class.
        probability: of that class.
        probabilities: by the names of all classes.
    """

    name: str
    probability: float
    probabilities: Mapping[str, float]


class Inputs(Protocol):
    """How the inputs of a task are encoded."""

    def encode(self, line: bytes) -> object:
        """Encode one input, exactly as the preparation of the training data does.

        Raises:
            UserError: it cannot be.
        """

    def batch(self, encoded: Sequence) -> Mapping[str, Tensor | np.ndarray]:
        """Put encoded inputs together: the arguments of the model by name."""


class Texts:
    """Texts, as symbols: one line a text; of two documents with a tab between them.

    Args:
        task: the model's.
        data: directory of its data, where there is one.

    Raises:
        UserError: the SentencePiece model is not there, or another.
    """

    def __init__(self, task: LRATextTask, data: str | None) -> None:
        self.task = task
        dictionary = task.source_dictionary
        named = [
            symbol
            for symbol in dictionary.symbols[dictionary.nspecial :]
            if symbol != "<CLS>" and not symbol.startswith("madeupword")
        ]
        self.tokenizer = _tokenizer(task.tokenizer, task.cut, named, data)
        self._ids = ids_of(dictionary, self.tokenizer.symbols)

    def encode(self, line: bytes) -> tuple[Tensor, ...]:
        """Return the symbols int64 (length,) of each document, EOS at the end.

        Raises:
            UserError: the line is empty, has another number of documents, or is no text of the
                kind that the model takes.
        """
        documents = line.split(b"\t") if self.task.documents == 2 else [line]
        if len(documents) != self.task.documents:
            raise UserError(f"it has {len(documents)} texts, expected two with a tab between them")
        if not all(document.strip() for document in documents):
            raise UserError("it is empty")
        eos = self.task.source_dictionary.eos()
        return tuple(
            torch.from_numpy(np.append(self._ids[self.tokenizer.encode(document)], eos))
            for document in documents
        )

    def batch(self, encoded: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor | np.ndarray]:
        """Put texts together: padded symbols and lengths of each document."""
        arguments = {}
        for name, rows in zip(("src", "src1"), zip(*encoded, strict=True), strict=False):
            dataset = ListDataset(rows, np.array([len(row) for row in rows]))
            parts = self.task.inputs(dataset, "the input")[:2]
            for kind, part in zip(("tokens", "lengths"), parts, strict=True):
                arguments[f"{name}_{kind}"] = part.collater([part[k] for k in range(len(rows))])
        return arguments


class GreyImages:
    """Image files as sequences of grey pixels: one path a line.

    Args:
        task: the model's.
    """

    def __init__(self, task: LRAImageTask) -> None:
        self.task = task
        self.side = math.isqrt(task.input_state()["pixels"] or 0)

    def encode(self, line: bytes) -> np.ndarray:
        """Return the pixels uint8 (pixels,) of an image.

        Raises:
            UserError: it is not there, damaged, or of another size.
        """
        path = os.fsdecode(line)
        with _open(path) as file:
            image = read_image(file, path, side=self.side, formats=images.FORMATS)
        return to_grey(image).reshape(-1)

    def batch(self, encoded: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Put the normalised pixels of images together."""
        rows = [pixels.normalised(image, self.task.mean, self.task.std) for image in encoded]
        return {"src_tokens": torch.stack(rows)}


class Images:
    """Image files as images: one path a line.

    Args:
        task: the model's.
    """

    def __init__(self, task: ImageClassificationTask) -> None:
        self.task = task

    def encode(self, line: bytes) -> np.ndarray:
        """Return an image, uint8 (height, width, channels).

        Raises:
            UserError: it is not there, damaged, or of another size than the images of the data,
                unless these are files of any size.
        """
        path, size = os.fsdecode(line), self.task.image_size
        channels = self.task.description.channels
        with _open(path) as file:
            if self.task.files:
                return centre_crop(images.read_image(file, path, channels), size)
            return decode(file, path, (*size, channels))

    def batch(self, encoded: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Put images together, normalised."""
        return {"images": images.normalised(encoded, self.task.mean, self.task.std)}


class Predictor(nn.Module):
    """A trained model in evaluation mode, and the encoding of its inputs.

    Args:
        model: the model.
        task: its task.
        data: directory of its data, where there is one.

    Raises:
        UserError: the task is none whose inputs are known here, or one needs its data.
    """

    def __init__(self, model: nn.Module, task: FairseqTask, data: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.inputs = _inputs(task, data)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def encode(self, text: str | bytes | os.PathLike[str]) -> object:
        """Encode an input, exactly as the preparation of the training data does.

        Args:
            text: a text or an expression (two texts have a tab between them), or an image's path.

        Raises:
            UserError: it cannot be.
        """
        if isinstance(text, bytes):
            return self.inputs.encode(text)
        # of texts UTF-8, of paths what the system has
        return self.inputs.encode(os.fsencode(text))

    @torch.no_grad()
    def forward(self, encoded: Sequence[object]) -> Tensor:
        """Return the probabilities (inputs, classes) of encoded inputs."""
        arguments = self.inputs.batch(encoded)
        # lengths are arrays, which stay on the host
        on_device = {
            name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in arguments.items()
        }
        logits = self.model(**on_device)
        return logits.float().softmax(1)

    def classify(self, encoded: Sequence[object]) -> list[Prediction]:
        """Return the predictions of encoded inputs, computed as one batch."""
        predictions = []
        for row in self(encoded).tolist() if encoded else []:
            named = {class_name(self.task, number): value for number, value in enumerate(row)}
            best = max(named, key=named.__getitem__)
            predictions.append(Prediction(best, named[best], named))
        return predictions

    def predict(self, texts: Sequence[str | bytes | os.PathLike[str]]) -> list[Prediction]:
        """Return the predictions of inputs, computed as one batch.

        Args:
            texts: what :meth:`encode` takes.

        Raises:
            UserError: one cannot be encoded.
        """
        return self.classify([self.encode(text) for text in texts])


def load(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Predictor:
    """Load a trained model.

    Args:
        checkpoint: path of one that training wrote, or name of a published one.
        data: directory of its data; None: what the checkpoint keeps of it, else, with earlier
            checkpoints, the directory that it was trained from.
        overrides: flags that replace those of the checkpoint.

    Raises:
        UserError: it is not there, is no whole checkpoint, or the data are needed.
    """
    path = str(checkpoint_of(checkpoint))
    given = {} if data is None else {"data": os.fspath(data)}
    state = checkpoint_utils.load_checkpoint_to_cpu(path, {**(overrides or {}), **given})
    cfg = state["cfg"].task
    task, directory = _task(path, cfg, state["task_state"], data is not None)
    models, *_ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    return Predictor(models[0], task, directory)


def class_name(task: FairseqTask, number: int) -> str:
    """Return the name of a class; its number where the data name none."""
    names: Sequence[str] = ()
    if isinstance(task, LRATextTask):
        names = task.target_dictionary.symbols[task.target_dictionary.nspecial :][
            : task.num_classes
        ]
    elif isinstance(task, ImageClassificationTask):
        names = task.description.classes
    return names[number] if number < len(names) else str(number)


def _task(
    path: str, cfg: DictConfig, kept: Mapping[str, object], from_data: bool
) -> tuple[FairseqTask, str | None]:
    """Return a checkpoint's task, and the directory of its data where there is one."""
    directory = str(cfg.data) if os.path.isdir(str(cfg.get("data") or "")) else None
    if from_data:
        return tasks.setup_task(cfg, from_checkpoint=True), directory
    made = getattr(TASK_REGISTRY[cfg._name], "from_checkpoint", None)
    try:
        if made is None:
            raise UserError(f"--task {cfg._name} needs its data: name their directory (--data)")
        return made(cfg, kept), directory
    except UserError as error:
        if directory is None:
            raise UserError(f"{path}: {error}") from None
        return tasks.setup_task(cfg, from_checkpoint=True), directory


def _inputs(task: FairseqTask, data: str | None) -> Inputs:
    if isinstance(task, LRATextTask):
        return Texts(task, data)
    if isinstance(task, LRAImageTask):
        return GreyImages(task)
    if isinstance(task, ImageClassificationTask):
        return Images(task)
    raise UserError(f"how the inputs of a {type(task).__name__} are encoded is not known here")


class _Expressions:
    """ListOps expressions."""

    symbols = list(listops.SYMBOLS)

    def encode(self, text: bytes) -> np.ndarray:
        """Return the codes uint8 (length,) of an expression.

        Raises:
            UserError: it is none.
        """
        try:
            return listops.encode(text.decode(errors="replace"))[0]
        except ValueError as error:
            raise UserError(f"it is no ListOps expression: {error}") from None


class _Symbols:
    """Symbols with blanks between them.

    Args:
        symbols: those that there are.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._codes = {symbol: code for code, symbol in enumerate(self.symbols)}

    def encode(self, text: bytes) -> np.ndarray:
        """Return the codes int64 (length,) of a line.

        Raises:
            UserError: a symbol is unknown.
        """
        try:
            return np.array([self._codes[word] for word in text.decode(errors="replace").split()])
        except KeyError as error:
            raise UserError(f"{error.args[0][:_SHOWN]!r} is no symbol of the data") from None


def _tokenizer(
    kind: str | None, cut: int | None, named: Sequence[str], data: str | None
) -> Tokenizer:
    """Return what made symbols of the texts of a set.

    Args:
        kind: as the preparation tells it; None: what its symbols tell.
        cut: symbols of a text that are kept.
        named: the symbols of the dictionary.
        data: directory of the data, where there is one.

    Raises:
        UserError: the SentencePiece model is not there, or another.
    """
    if kind == "bytes" or (kind is None and set(named) <= set(ByteTokenizer.symbols)):
        return ByteTokenizer(cut or MAX_LENGTH)
    model = os.path.join(data, SENTENCEPIECE_FILE) if data else None
    if kind == "sentencepiece" or (kind is None and model and os.path.exists(model)):
        if model is None or not os.path.exists(model):
            raise UserError(
                f"the texts were encoded by SentencePiece, whose model, {SENTENCEPIECE_FILE}, is "
                "with the data: name their directory (--data)"
            )
        with open_file(model) as file:
            tokenizer = SentencePieceTokenizer(read_whole(file, model), cut or MAX_LENGTH)
        if not set(named) <= set(tokenizer.symbols):
            raise UserError(f"{model} has other symbols than the checkpoint was trained with")
        return tokenizer
    if set(named) <= set(listops.SYMBOLS) and not set(named) <= set(listops.DIGITS):
        return _Expressions()
    return _Symbols(named)


def _open(path: str) -> BinaryIO:
    if not path.strip():
        raise UserError("it is empty")
    try:
        return open_file(path)
    except OSError as error:
        raise UserError(f"{path[:300]} cannot be read ({error.strerror})") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path[:_SHOWN]!r} is no path ({error})") from None
