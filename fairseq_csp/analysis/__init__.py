"""What the mechanism does, as pictures and tables: ``python -m fairseq_csp.analysis --help``."""
