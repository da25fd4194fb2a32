"""SAM 2 prompted on the first frame and left alone: the yardstick of methods that need no prompt (arXiv 2408.00714)."""
