"""Fine-grained manifold distillation (2107.01378) of a ViT into any image classifier of transformers."""
