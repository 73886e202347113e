"""Values of flags: the one table of what each may be, ours and fairseq's, and why."""

import math
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fairseq_csp.errors import UserError


def positive(text: str) -> int:
    """Read a flag's value that must be a whole number above zero; a ``type`` for argparse.

    Args:
        text: the value as it was written.

    Returns:
        The number, at least 1.

    Raises:
        ArgumentTypeError: it is no whole number, or not above zero.
    """
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is no whole number") from None
    if value < 1:
        raise ArgumentTypeError(f"{text} is not above zero")
    return value


def user_directory(text: str) -> str:
    """Read a flag's value that must be a user directory of fairseq; a ``type`` for argparse.

    Args:
        text: the value as it was written.

    Returns:
        Its absolute path.

    Raises:
        ArgumentTypeError: there is no such directory, or it is no package.
    """
    path = Path(text).absolute()
    if not (path / "__init__.py").is_file():
        raise ArgumentTypeError(f"{text} is no directory with an __init__.py")
    return str(path)


@dataclass(frozen=True)
class Numbers:
    """The numbers that a flag may have; of a list each.

    Attributes:
        least: the smallest.
        most: the largest.
        why: what the flag is, or why its numbers are bounded.
        open: ``least`` itself is not among them.
        below: ``most`` itself is not among them.
    """

    least: float
    most: float
    why: str
    open: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is allowed; nan is not."""
        low = self.least < value if self.open else self.least <= value
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.open else 'at least'} {self.least:,g}"
        if self.most == math.inf:
            return f"a finite number {low}" if self.below else low
        return f"{low} and {'below' if self.below else 'at most'} {self.most:,.10g}"


def _at_least(least: int, why: str, most: float = 2**31 - 1) -> Numbers:
    return Numbers(least, most, why)


_SEED = Numbers(0, 2**32 - 1, "NumPy takes no other seeds")
_PROBABILITY = Numbers(0, 1, "the probability of dropping a number", below=True)
_CHANNELS = Numbers(1, 65_536, "a number of channels")
_EVERY = _at_least(1, "it counts epochs, updates or lines between two of them")
_LIMIT = _at_least(0, "it is a number of updates or epochs")
_RATE = Numbers(0, math.inf, "a learning rate", below=True)
_FACTOR = Numbers(0, math.inf, "a factor of the learning rate", open=True, below=True)
_SCALE = Numbers(0, math.inf, "a scale of the loss", open=True, below=True)
_KEPT = _at_least(-1, "it is a number of checkpoints, or -1 for all")

NUMBERS = {
    # the model
    "encoder_layers": Numbers(1, 1_000, "a number of layers"),
    "encoder_embed_dim": _CHANNELS,
    "encoder_hidden_dim": _CHANNELS,
    "encoder_ffn_embed_dim": Numbers(0, 65_536, "a number of channels"),
    "encoder_attention_heads": _CHANNELS,
    "z_dim": _CHANNELS,
    "n_dim": _CHANNELS,
    "classifier_in_dim": _CHANNELS,
    "classifier_out_dim": _CHANNELS,
    "classifier_layers": Numbers(0, 1_000, "a number of layers"),
    "sentence_class_num": Numbers(1, 100_000, "a number of classes"),
    "max_positions": Numbers(1, 1_000_000, "tables of this length are made"),
    "chunk_size": _at_least(-1, "a number of positions, or -1 for all"),
    "dropout": _PROBABILITY,
    "attention_dropout": _PROBABILITY,
    "act_dropout": _PROBABILITY,
    "embedding_dropout": _PROBABILITY,
    "head_dim": _CHANNELS,
    "image_channels": _CHANNELS,
    "mixup": Numbers(0, math.inf, "both parameters of a beta distribution", below=True),
    # the loss
    "label_smoothing": Numbers(0, 1, "the share of the other classes", below=True),
    # the optimizer and its schedule
    "lr": Numbers(0, math.inf, "with no other rate the model learns", open=True, below=True),
    "clip_norm": Numbers(0, math.inf, "the largest norm of a gradient; 0 for any", below=True),
    "weight_decay": Numbers(0, math.inf, "a share of the weights", below=True),
    "adam_eps": Numbers(0, math.inf, "it keeps Adam from dividing by 0", open=True, below=True),
    "adam_betas": Numbers(0, 1, "the share of its moments that Adam keeps", below=True),
    "warmup_updates": _LIMIT,
    "warmup_power": Numbers(0, math.inf, "the power the rate rises with", open=True, below=True),
    "total_num_update": Numbers(0, math.inf, "a number of updates", open=True, below=True),
    "end_learning_rate": _RATE,
    "min_lr": _RATE,
    "max_lr": _FACTOR,
    "warmup_init_lr": Numbers(-math.inf, math.inf, "a learning rate", open=True, below=True),
    "stop_min_lr": Numbers(-math.inf, math.inf, "a learning rate", open=True, below=True),
    "momentum": Numbers(0, 1, "the share of the last step that is kept", below=True),
    "power": Numbers(0, math.inf, "the power the rate falls with", open=True, below=True),
    "lr_period_updates": _at_least(-1, "a number of updates, or -1 for those of the run"),
    "t_mult": Numbers(0, math.inf, "the factor of each period's length", open=True, below=True),
    "lr_shrink": _FACTOR,
    "lr_decay": _FACTOR,
    "init_lr_scale": _FACTOR,
    "final_lr_scale": _FACTOR,
    "lr_deacy_period": _at_least(1, "a number of updates"),
    "lr_threshold": Numbers(0, math.inf, "the least change that counts", below=True),
    "lr_patience": _at_least(0, "a number of epochs"),
    "warmup_steps": _LIMIT,
    "hold_steps": _LIMIT,
    "phase_ratio": Numbers(0, 1, "a share of the updates"),
    "decay_steps": _LIMIT,
    "force_anneal": _LIMIT,
    "update_freq": _at_least(1, "a number of batches"),
    "max_update": _LIMIT,
    "max_epoch": _LIMIT,
    "stop_time_hours": Numbers(0, math.inf, "a time", below=True),
    "patience": _at_least(-1, "a number of validations, or -1 for no end"),
    "ema_decay": Numbers(0, 1, "the share of the mean that is kept"),
    "ema_start_update": _LIMIT,
    "ema_update_freq": _at_least(1, "a number of updates"),
    "fp16_init_scale": _SCALE,
    "fp16_scale_window": _at_least(1, "a number of updates"),
    "fp16_scale_tolerance": Numbers(0, 1, "the share of updates that may overflow"),
    "min_loss_scale": _SCALE,
    "threshold_loss_scale": _SCALE,
    "amp_batch_retries": _at_least(0, "a number of batches"),
    "amp_init_scale": _SCALE,
    "amp_scale_window": _at_least(1, "a number of updates"),
    # the data
    "batch_size": _at_least(1, "a number of examples"),
    "batch_size_valid": _at_least(1, "a number of examples"),
    "max_tokens": _at_least(1, "a number of positions"),
    "max_tokens_valid": _at_least(1, "a number of positions"),
    "required_batch_size_multiple": _at_least(1, "a number of examples"),
    "required_seq_len_multiple": _at_least(1, "a number of positions"),
    "num_workers": Numbers(0, 1_024, "a number of processes"),
    "data_buffer_size": _at_least(0, "a number of batches"),
    "max_valid_steps": _at_least(1, "a number of batches"),
    "curriculum": _LIMIT,
    "num_shards": _at_least(1, "a number of parts"),
    "shard_id": _at_least(0, "the number of a part"),
    "seed": _SEED,
    "fixed_validation_seed": _SEED,
    # what is kept and logged
    "log_interval": _EVERY,
    "save_interval": _EVERY,
    "save_interval_updates": _LIMIT,
    "keep_interval_updates": _KEPT,
    "keep_last_epochs": _KEPT,
    "keep_best_checkpoints": _KEPT,
    "validate_interval": _EVERY,
    "validate_interval_updates": _LIMIT,
    "validate_after_updates": _LIMIT,
    # the machine
    "distributed_world_size": Numbers(1, 100_000, "a number of processes"),
    "nprocs_per_node": Numbers(1, 1_024, "a number of processes"),
    "empty_cache_freq": _LIMIT,
    "all_gather_list_size": _at_least(1, "a number of bytes"),
}


def named(key: str) -> str:
    """Return the flag that sets a key."""
    return f"--{key.replace('_', '-')}"


def check_values(values: Mapping[str, object]) -> None:
    """Check numbers and text against the table.

    Args:
        values: by key, as in fairseq's configuration; keys that the table lacks may have any.

    Raises:
        UserError: one is not among those of the table, or is text that fairseq would change or
            cannot write down.
    """
    for key, value in values.items():
        if isinstance(value, str):
            _check_text(key, value)
        allowed = NUMBERS.get(key)
        if allowed is None or value is None:
            continue
        for number in _numbers(key, value):
            if number not in allowed:
                raise UserError(
                    f"{named(key)} is {number}, but must be {allowed} ({allowed.why}): give it "
                    "another value"
                )


def _check_text(key: str, value: str) -> None:
    if "${" in value:
        raise UserError(f"{value} has ${{ in it, which fairseq would replace: rename it")
    if any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise UserError(
            f"{named(key)} is {ascii(value)}, which is not UTF-8 and cannot be written into a log "
            "or a checkpoint: rename it"
        )


def _numbers(key: str, value: object) -> list[float]:
    """Return the numbers of a value, which may be a list or the text of one."""
    if isinstance(value, str):
        value = [part for part in value.strip("()[] ").split(",") if part.strip()]
    parts = value if isinstance(value, Iterable) else [value]
    try:
        numbers = [part if isinstance(part, int | float) else float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        raise UserError(f"{named(key)} is {value!r}, but must be a number: give it another value")
    return numbers
