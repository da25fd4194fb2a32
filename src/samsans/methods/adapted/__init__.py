"""Prompt-free baselines that adapt SAM: SAMed and AutoSAM."""
