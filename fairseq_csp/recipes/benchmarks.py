"""What ``train_lra.sh`` and ``train_vit.sh`` differ in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairseq_csp.datasets import DATASETS, DataSet
from fairseq_csp.recipes import flags, lra, vision
from fairseq_csp.recipes.recipe import Recipe, Stage


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A set of models, data sets and recipes.

    Attributes:
        script: the command.
        models: gives the names of the models.
        datasets: gives the data sets by the names that the command has for them.
        presets: a recipe's stages of a model and a data set, by the preset's name.
        default_preset: which one it is where none is given.
        flags: fairseq-train's, of a model, a data set, a recipe and an attention function.
    """

    script: str
    models: Callable[[], tuple[str, ...]]
    datasets: Callable[[], Mapping[str, DataSet]]
    presets: Mapping[str, Callable[[str, str], tuple[Stage, ...]]]
    default_preset: str
    flags: Callable[[str, str, Recipe, str], list[str]]

    def stages(self, model: str, dataset: str, preset: str) -> tuple[Stage, ...]:
        """Return the stages of a cell, most often one.

        Raises:
            ValueError: the preset has no recipe for the data set.
        """
        return self.presets[preset](model, self.datasets()[dataset].like or dataset)


BENCHMARKS = {
    "lra": Benchmark(
        script="train_lra.sh",
        models=flags.model_names,
        datasets=lambda: DATASETS,
        presets=lra.PRESETS,
        default_preset="paper",
        flags=flags.flags,
    ),
    "vision": Benchmark(
        script="train_vit.sh",
        models=vision.model_names,
        datasets=vision.data_sets,
        presets=vision.PRESETS,
        default_preset="default",
        flags=vision.flags,
    ),
}
