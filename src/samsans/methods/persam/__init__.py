"""PerSAM (arXiv 2305.03048): the annotated image tells where to click; nothing is trained."""
