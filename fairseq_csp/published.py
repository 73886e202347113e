"""Published test accuracies on the Long Range Arena, in percent.

``python -m fairseq_csp.published`` prints them as a Markdown table. The numbers and their sources
stand in ``datasets.py``, each in its data set's entry.
"""

import sys

from fairseq_csp.datasets import DATASETS

# as published; of a model that fails on Path-X over the other five
_AVERAGES = {
    "Transformer": 59.24,
    "Luna-256": 61.95,
    "Sliceformer": 58.91,
    "S4-v2": 86.09,
    "S5": 87.46,
    "MEGA": 88.21,
    "MEGA-chunk": 85.66,
    "Megalodon": 88.63,
}
_OF_FAMILY = {"transformer": "Transformer", "mega": "MEGA", "flash": "FLASH"}


def accuracy(family: str, dataset: str) -> str:
    """Return what was published for a family of architectures with its own attention.

    Args:
        family: first word of an architecture's name, such as ``mega``.
        dataset: name of a data set.

    Returns:
        The test accuracy in percent, ``fails``, or an empty string where nothing was published.
    """
    data_set = DATASETS.get(dataset)
    return _shown(data_set.published.get(_OF_FAMILY.get(family))) if data_set else ""


def table() -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table: models by data sets that have a number."""
    columns = {name: data_set.published for name, data_set in DATASETS.items()}
    columns = {name: column for name, column in columns.items() if column}
    models = dict.fromkeys(model for column in columns.values() for model in column)
    rows = [
        [model, *(_shown(column.get(model)) for column in columns.values())]
        + [_shown(_AVERAGES.get(model))]
        for model in models
    ]
    return ["model", *columns, "average"], rows


def _shown(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.2f}"


if __name__ == "__main__":
    from fairseq_csp.report.tables import markdown

    sys.stdout.write(markdown(*table()))
