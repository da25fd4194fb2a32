"""Proxy Prompt (arXiv 2502.03501): context encoder, bridge, selective map and colorization module on SAM.

Read ``model`` first.  This file imports nothing, so that ``config`` is read without torch.
"""
