"""What fairseq makes of ``--bf16``."""

from argparse import Namespace
from importlib.util import find_spec

from omegaconf import DictConfig


def take_back_tpu(args: Namespace | DictConfig) -> None:
    """Undo that fairseq takes ``--bf16`` to mean a TPU, where there is no library for one."""
    if isinstance(args, Namespace) and find_spec("torch_xla") is None:
        args.tpu = False
