"""Channel-wise sample permutation and its baselines on the Long Range Arena, for fairseq.

A fairseq user directory: importing it (``--user-dir fairseq_csp``) registers what it adds.
"""

import argparse

import torch

import fairseq_csp.checkpoints
import fairseq_csp.criterions.lra_cross_entropy
import fairseq_csp.flags
import fairseq_csp.log_file
import fairseq_csp.models.architectures
import fairseq_csp.optim.linear_decay
import fairseq_csp.tasks.lra_image
import fairseq_csp.tasks.lra_text
import fairseq_csp.tasks.unnamed  # noqa: F401

# checkpoints of the published code hold their flags in a Namespace
torch.serialization.add_safe_globals([argparse.Namespace])
