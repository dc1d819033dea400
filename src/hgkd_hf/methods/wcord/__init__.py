"""WCoRD (2012.08674): Wasserstein contrastive distillation of pooled features, beside labels."""
