"""Medical SAM 2 (arXiv 2408.00874): support pairs as the frames that SAM 2 remembers."""
