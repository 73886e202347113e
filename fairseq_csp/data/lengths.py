"""The lengths of a batch's sequences, on the host."""

import numpy as np
from fairseq.data import BaseWrapperDataset


class LengthDataset(BaseWrapperDataset):
    """The number of positions of each sequence of a dataset.

    A batch of them is an array: fairseq moves tensors to the GPU, from which they would have to be
    asked back, and ``torch.compile`` takes the integers of a list for constants.
    """

    def __getitem__(self, index: int) -> int:
        return int(self.dataset.sizes[index])

    def collater(self, samples: list[int]) -> np.ndarray:
        """Return one int64 a sequence."""
        return np.array(samples, dtype=np.int64)
