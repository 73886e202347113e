"""From the raw releases to the files that training reads: ``python -m preprocess NAME``."""
