"""Speed and memory of this project beside the direct formulas."""
