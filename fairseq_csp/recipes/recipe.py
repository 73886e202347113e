"""What a recipe consists of."""

from dataclasses import dataclass

# in the arguments of a preparation, the directory of the last stage's data
LAST_DATA = "{last}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyper-parameters of one training run, or of one stage of it.

    Attributes:
        arch: the architecture; None: the one that is named after the data set (vision).
        layers: encoder layers; None: the architecture's own.
        norm: normalisation of MEGA.
        prenorm: MEGA normalises before each block.
        attention: MEGA's own attention function.
        lr: learning rate at its highest.
        dropout: probability of dropping a model channel.
        weight_decay: of Adam.
        batch: examples of a batch.
        accumulate: batches of an update.
        updates: updates of the run.
        decay: update at which the learning rate would reach 0.
        warmup: updates of the warm-up.
        power: of the warm-up.
        save_interval: updates between checkpoints; None: those of 64,000 examples.
        flags: further flags of fairseq-train.
        bfloat16: compute in bfloat16 where the processor has instructions for it.
    """

    arch: str | None = None
    layers: int | None = None
    norm: str | None = None
    prenorm: bool = False
    attention: str | None = None
    lr: float
    dropout: float
    weight_decay: float = 0.0
    batch: int
    accumulate: int = 1
    updates: int
    decay: int
    warmup: int
    power: int = 1
    save_interval: int | None = None
    flags: tuple[str, ...] = ()
    bfloat16: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the trainings that a run consists of, each from the weights of the one before.

    Attributes:
        name: of its directory; the last stage stands in the run's own.
        recipe: its hyper-parameters.
        data: of what the name of its data ends with; empty: the data set itself.
        preparation: arguments of ``python -m preprocess`` that make this data, ``LAST_DATA``
            among them.
    """

    name: str
    recipe: Recipe
    data: str = ""
    preparation: tuple[str, ...] = ()
