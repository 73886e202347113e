"""Reading what a preparation wrote."""

from fairseq.data import Dictionary, data_utils


def token_lines(directory, split):
    """Read a ``*-bin`` directory with fairseq, as lists of words, EOS included."""
    dictionary = Dictionary.load(str(directory / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(directory / split), dictionary, "mmap")
    return [[dictionary[token] for token in item.tolist()] for item in dataset]


def files(directory):
    """Return the content of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
