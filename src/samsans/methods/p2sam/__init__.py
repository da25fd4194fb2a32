"""P2SAM: a distribution over prompts for SAM, from which several plausible masks are drawn."""
