"""Training recipes: one file a benchmark, and the arguments of ``train_lra.sh`` that choose.

Only the standard library is imported here: ``train_lra.sh`` checks its arguments before anything
is installed.
"""
