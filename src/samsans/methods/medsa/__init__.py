"""Medical SAM Adapter (arXiv 2304.12620): adapters in the encoder, prompts from the true mask."""
