"""The lengths of a batch's sequences, on the host."""

from fairseq.data import BaseWrapperDataset


class LengthDataset(BaseWrapperDataset):
    """The number of positions of each sequence of a dataset.

    A batch of them is a list of integers: fairseq moves tensors to the GPU, from which they would
    have to be asked back.
    """

    def __getitem__(self, index: int) -> int:
        return int(self.dataset.sizes[index])

    def collater(self, samples: list[int]) -> list[int]:
        """Return one integer a sequence."""
        return list(samples)
