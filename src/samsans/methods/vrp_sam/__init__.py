"""VRP-SAM (arXiv 2402.17726): learned queries turn an annotated image into a prompt."""
