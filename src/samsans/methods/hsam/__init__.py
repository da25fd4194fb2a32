"""H-SAM (arXiv 2403.18271): ``model.py`` is the paper, read top to bottom."""
