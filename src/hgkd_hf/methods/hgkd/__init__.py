"""H-GKD: masked feature distillation from a vision transformer into a sparse CNN (2309.09571, our reading)."""
