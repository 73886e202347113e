"""Check without a GPU what a GPU would be asked for: python -m tests.cuda.check --help

Models of fake tensors on device "cuda" run forward, loss, backward, update and evaluation. Needs
the library that tests/cuda/device.py builds.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

from tests.cuda import device

PRECISIONS = ("float32", "fp16", "bf16", "amp")
# launches of forward and backward pass of a model of two layers; under autocast casts are launches
BUDGET = 1300
OF_CSP = 850
# copies from the host that a forward pass may make: the lengths, and what functions make of them
HOST_COPIES = 2
# they treat sequences of other lengths apart, with as many launches and copies
APART = {"fnet": "a transform of each length", "nystrom": "short sequences are exact"}


@dataclass(frozen=True)
class Cell:
    """A model, its input and how it computes."""

    family: str
    source: str
    attention: str | None
    precision: str

    def __str__(self) -> str:
        return f"{self.family}-{self.source}-{self.attention or 'own'}-{self.precision}"


def every_cell() -> list[Cell]:
    """Return each family with each input, attention function and precision that it takes."""
    from fairseq_csp.models import vit
    from fairseq_csp.models.family import FAMILY_REGISTRY, can_take
    from fairseq_csp.modules.attention import ATTENTION_REGISTRY

    cells = []
    for family, member in FAMILY_REGISTRY.items():
        names = [name for name, cls in ATTENTION_REGISTRY.items() if can_take(member, cls)]
        for name, source in product(sorted(names) or [None], ("text", "image")):
            if name is None or source == "image" or not ATTENTION_REGISTRY[name].images_only:
                cells += [Cell(family, source, name, precision) for precision in PRECISIONS]
    for name, cls in sorted(ATTENTION_REGISTRY.items()):
        if cls.families is None or vit.FAMILY in cls.families:
            cells += [Cell(vit.FAMILY, "image", name, precision) for precision in PRECISIONS]
    return cells


def in_turn(cells: list[Cell], key: Callable[[Cell], Hashable]) -> list[Cell]:
    """Choose one cell of each kind, with the other features in turn.

    Args:
        cells: all there are.
        key: of a cell, its kind.
    """
    kinds: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(key(cell), []).append(cell)
    chosen = []
    for number, kind in enumerate(sorted(kinds, key=str)):
        precision = PRECISIONS[number % len(PRECISIONS)]
        fitting = [cell for cell in kinds[kind] if cell.precision == precision]
        chosen.append(fitting[number * 7 % len(fitting)])
    return chosen


CHOICES: dict[str, Callable[[list[Cell]], list[Cell]]] = {
    "functions": lambda cells: in_turn(cells, lambda cell: cell.attention),
    "pairs": lambda cells: in_turn(cells, lambda cell: (cell.attention, cell.family)),
    "all": lambda cells: cells,
}


def build(cell: Cell):
    """Return a model of real tensors in training mode, small, with dropout."""
    import torch

    from fairseq_csp.models.vit import ViTConfig, ViTModel
    from tests.mixers.entries import model_of, options_of

    dropout = {"dropout": 0.1}
    if cell.family == "vit":
        sizes = {"image_size": 24, "patch_size": 4, "encoder_layers": 2, "encoder_embed_dim": 16}
        sizes |= {"encoder_attention_heads": 4, "head_dim": 4, "encoder_ffn_embed_dim": 12}
        config = ViTConfig(attention=cell.attention, **sizes, **options_of(cell.attention))
        model = ViTModel(config)
    else:
        task = {"text": "imdb", "image": "cifar10"}[cell.source]
        dropout |= {"attention_dropout": 0.1, "act_dropout": 0.1, "keep_padding": False}
        sizes = {"max_positions": 40 if cell.source == "text" else 36}
        # in chunks every other time
        if cell.family == "mega" and cell.source == "text" and cell.precision in ("amp", "bf16"):
            sizes["chunk_size"] = 8
        model = model_of(cell.family, task, cell.attention, **sizes, **dropout)
    if cell.precision in ("fp16", "bf16"):
        model = model.to({"fp16": torch.float16, "bf16": torch.bfloat16}[cell.precision])
    return model.train()


def to_device(model) -> None:
    """Put fake tensors of the device in the place of a model's own."""
    import torch
    from torch import nn

    made = {}
    for module in model.modules():
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            if id(old) not in made:
                new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cuda")
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                made[id(old)] = (old, new)
            setattr(module, name, made[id(old)][1])


def sample_of(cell: Cell, lengths: list[int]) -> dict:
    """Return a batch of the device as fairseq's trainer prepares it."""
    import numpy as np
    import torch
    from fairseq.utils import apply_to_sample

    rows = len(lengths)
    if cell.family == "vit":
        inputs = {"images": torch.empty(rows, 3, 24, 24)}
    elif cell.source == "image":
        inputs = {"src_tokens": torch.empty(rows, 36)}
    else:
        tokens = torch.zeros(rows, max(lengths), dtype=torch.int64)
        inputs = {"src_tokens": tokens, "src_lengths": np.array(lengths)}
    sample = {"net_input": inputs, "target": torch.zeros(rows, dtype=torch.int64), "ntokens": 9}

    def move(x):
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(cell.precision)
        x = x.to(device="cuda", non_blocking=True)
        return x.to(dtype) if dtype and x.dtype == torch.float32 else x

    return apply_to_sample(move, sample)


def optimizer_of(cell: Cell, parameters: list):
    """Return fairseq's Adam, behind its own for half precision where it is used."""
    from fairseq import optim
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.optim.adam import FairseqAdamConfig
    from omegaconf import OmegaConf

    cfg = OmegaConf.structured(FairseqConfig)
    OmegaConf.set_struct(cfg, False)
    cfg.optimizer = OmegaConf.structured(FairseqAdamConfig(lr=[0.001]))
    cfg.optimizer._name = "adam"
    # fairseq's flat vector is of torch.cuda.FloatTensor, of which there are no fakes
    cfg.common.fp16_no_flatten_grads = True
    cfg.common.fp16, cfg.common.bf16 = cell.precision == "fp16", cell.precision == "bf16"
    if cell.precision in ("fp16", "bf16"):
        cfg.distributed_training.distributed_world_size = 1
        cfg.optimization.update_freq = [1]
        return optim.FP16Optimizer.build_optimizer(cfg, parameters)
    return optim.build_optimizer(cfg.optimizer, parameters)


def give_sequences_whole() -> None:
    """Let the LSTM read padding: how PyTorch packs sequences depends on numbers, which fakes lack.

    On a GPU packing copies indices to the device, for which the host waits.
    """
    from fairseq_csp.models.families import lstm

    lstm.pack_padded_sequence = lambda x, *_, **__: x
    lstm.pad_packed_sequence = lambda x, *_, **__: (x, None)


def check(cell: Cell, fake) -> list:
    """Run a cell and return its faults."""
    import torch

    from fairseq_csp.criterions.image_cross_entropy import ImageCrossEntropyCriterion
    from fairseq_csp.criterions.lra_cross_entropy import LRACrossEntropyCriterion
    from fairseq_csp.modules.attention import after_update
    from tests.cuda.watch import Fault, Watch

    model = build(cell)
    kind = ImageCrossEntropyCriterion if cell.family == "vit" else LRACrossEntropyCriterion
    criterion = kind(None, label_smoothing=0.1)
    watch = Watch()

    def autocast():
        return torch.autocast("cuda") if cell.precision == "amp" else nullcontext()

    def step(lengths: list[int], watch, updates: int = 0) -> None:
        sample = sample_of(cell, lengths)
        with watch:
            watch.phase = "forward"
            with autocast():
                loss, size, _ = criterion(model.train(), sample)
            watch.phase = "backward"
            optimizer.backward(loss)
            watch.phase = "update"
            if not updates:
                optimizer.zero_grad()
                return
            optimizer.multiply_grads(1 / size)
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
            after_update(model, updates)
            optimizer.zero_grad()
            watch.phase = "evaluation"
            with torch.no_grad():
                criterion(model.eval(), sample)

    with fake:
        try:
            to_device(model)
            optimizer = optimizer_of(cell, [p for p in model.parameters() if p.requires_grad])
            # fills what is kept from batch to batch
            step([16, 9, 5], Watch())
            step([15, 7, 2], watch, updates=1)
        except Exception as error:
            places = [
                f"{frame.filename[frame.filename.index('fairseq_csp/') :]}:{frame.lineno}"
                for frame in traceback.extract_tb(error.__traceback__)
                if "fairseq_csp/" in frame.filename
            ]
            text = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            return [*watch.faults, Fault(text, places[-1] if places else "outside the project")]
        single = watch.launches["forward"] + watch.launches["backward"]
        more = Watch()
        step([15, 7, 2, 12, 4, 9], more)
    faults = list(dict.fromkeys(watch.faults))
    if cell.family != "lstm":
        # cuDNN's is one launch; here it is taken apart
        double = more.launches["forward"] + more.launches["backward"]
        for place, count in more.lines.items() if cell.attention not in APART else ():
            if double > single and count > watch.lines[place]:
                kind = f"{count} launches for 6 sequences, {watch.lines[place]} for 3"
                faults.append(Fault(kind, place))
        if single > (OF_CSP if cell.attention == "csp" else BUDGET):
            place, count = watch.lines.most_common(1)[0]
            faults.append(Fault(f"{single} launches, {count} of them here", place))
        copies = watch.host_copies["forward"]
        if copies > HOST_COPIES and cell.attention not in APART:
            faults.append(Fault(f"{copies} copies from the host in a forward pass", str(cell)))
    check.launches[str(cell)] = single
    return faults


check.launches = {}


def main(arguments: list[str]) -> int:
    """Check cells and write their faults; see ``--help``.

    Returns:
        0 where there are none.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.check", description=__doc__)
    parser.add_argument("--library", required=True, help="written by python -m tests.cuda.device")
    parser.add_argument(
        "--cells",
        choices=CHOICES,
        default="functions",
        help="each function once, in each family once, or all; other features in turn",
    )
    for name in ("family", "source", "attention", "precision"):
        parser.add_argument(f"--{name}", help="this alone")
    parser.add_argument("--launches", action="store_true", help="also the launches of each cell")
    options = parser.parse_args(arguments)
    os.environ.setdefault("FAIRSEQ_CSP_KERNELS", "reference")
    device.load(options.library)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    import fairseq_csp.plugin  # noqa: F401 (registers families and functions)

    device.prepare()
    give_sequences_whole()
    torch.set_num_threads(1)
    given = {
        name: value
        for name in ("family", "source", "attention", "precision")
        if (value := getattr(options, name))
    }
    cells = CHOICES[options.cells](every_cell())
    cells = [c for c in cells if all(getattr(c, key) == value for key, value in given.items())]
    faulty = 0
    # one for all: tables are kept from model to model
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    for cell in cells:
        faults = check(cell, fake)
        faulty += bool(faults)
        for fault in faults:
            sys.stdout.write(f"{cell}: {fault}\n")
            sys.stdout.flush()
    if options.launches:
        for name, count in sorted(check.launches.items(), key=lambda item: -item[1]):
            sys.stdout.write(f"{count} {name}\n")
    sys.stdout.write(f"{len(cells)} cells, {faulty} with a fault\n")
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
