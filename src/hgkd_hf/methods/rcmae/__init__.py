"""RC-MAE: a masked CNN reconstructs pixels, consistently with a moving average of itself (arXiv:2210.02077)."""
