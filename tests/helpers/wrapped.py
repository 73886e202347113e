"""A model in torch's own wrapper for several processes."""

from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def in_torchs_wrapper(model, directory, use):
    """Call ``use`` with the model wrapped, in a group of this process alone, and return its result.

    The wrapper goes before the group does: as the group's last holder it would wait, with
    Python's lock held, for a thread of the group that may want the lock.
    """
    distributed.init_process_group("gloo", f"file://{directory}/store", rank=0, world_size=1)
    try:
        return use(DistributedDataParallel(model))
    finally:
        distributed.destroy_process_group()
