"""A report on any number of training runs: ``python -m fairseq_csp.report outputs``."""
