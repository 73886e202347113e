"""``fairseq-validate`` does without ``--task`` and ``--batch-size``.

fairseq looks up the flags of the task it was told, under None when it was told none, and refuses to
start without a batch size. The task itself comes from the checkpoint.
"""

from argparse import ArgumentParser

from fairseq.tasks import TASK_REGISTRY, FairseqTask

BATCH_SIZE = 32


class UnnamedTask(FairseqTask):
    """Stands in while the flags are read."""

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the data directory, and give the batch size a default."""
        parser.add_argument("data", help="directory of the prepared data")
        parser.set_defaults(batch_size=BATCH_SIZE)


TASK_REGISTRY[None] = UnnamedTask
