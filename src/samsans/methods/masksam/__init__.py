"""MaskSAM (arXiv 2403.14103): ``model.py`` is the paper, read top to bottom."""
