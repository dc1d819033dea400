"""TinyMIM: a student's tokens relate to each other as those of a block of a frozen ViT do (arXiv:2301.01296)."""
