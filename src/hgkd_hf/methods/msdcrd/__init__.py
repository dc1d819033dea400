"""MSDCRD: contrastive distillation of local regions at several scales; an independent reading of the abstract."""
