"""Published top-1 test accuracies of image classification, in percent, each with its source.

Recipes, sizes and augmentation differ from source to source: compare within one only. For CSP and
the attention beside it the paper's numbers are not at hand.
"""

# the data sets of the table by this project's names
COLUMNS = ("cifar10-rgb", "cifar100", "tiny-imagenet", "imagenet", "mnist")
# by source: model, the data sets in the order of COLUMNS (-: not published)
_SOURCES = {
    "arXiv 2310.17683, the authors' sheet": """
        Sliceformer, ascending         82.16 54.18 51.77 78 98.81
        Sliceformer, Haar interleave   83.54 54.70 52.40 -  98.95
        ViT, Sliceformer's authors      80.98 -     -     -  98.78
    """,
    "kentaroy47/vision-transformers-cifar10 (README)": """
        ViT, patch 4, 512 channels, 200 epochs   80 - - - -
        ViT, patch 4, 512 channels, 500 epochs   88 - - - -
    """,
    "omihub777/ViT-CIFAR (README)": """
        ViT 6.3 M, AutoAugment, label smoothing, 200 epochs   91.01 - - - -
    """,
    "SHI-Labs/Compact-Transformers (README)": """
        ViT-Lite-6/4, 3.19 M, strong augmentation, 200 epochs   90.94 69.20 - - -
        ViT-Lite-7/4, 3.72 M, strong augmentation, 200 epochs   91.38 69.75 - - -
    """,
    "mskimS2/image-models (README)": """
        ViT 18.9 M   83.41 56.10 - - -
    """,
}
# which of them stands beside a run of a Vision Transformer with an attention function
_BESIDE = {
    None: "ViT, Sliceformer's authors",
    "softmax": "ViT, Sliceformer's authors",
    "sliceformer": "Sliceformer, ascending",
}


def _read() -> dict[str, tuple[str, list[str]]]:
    models = {}
    for source, text in _SOURCES.items():
        for line in text.strip().splitlines():
            words = line.split()
            numbers = ["" if word == "-" else word for word in words[-len(COLUMNS) :]]
            models[" ".join(words[: -len(COLUMNS)])] = source, numbers
    return models


PUBLISHED = _read()


def accuracy(attention: str | None, dataset: str) -> str:
    """Return the published accuracy to show beside a Vision Transformer trained here.

    Args:
        attention: name of the attention function.
        dataset: name of a data set.

    Returns:
        Percent, with the name of the published model; empty where nothing was published.
    """
    model = _BESIDE.get(attention)
    if model is None or dataset not in COLUMNS:
        return ""
    found = PUBLISHED[model][1][COLUMNS.index(dataset)]
    return f"{found} ({model})" if found else ""


def table() -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of all models."""
    rows = [[model, *numbers, source] for model, (source, numbers) in PUBLISHED.items()]
    return ["model", *COLUMNS, "source"], rows
