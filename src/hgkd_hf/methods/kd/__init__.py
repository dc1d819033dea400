"""The baselines of every comparison: labels alone, logit KD, DKD, FitNets hints, and InfoNCE in one batch."""
