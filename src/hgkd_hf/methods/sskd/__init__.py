"""SSKD (2006.07114): a classifier learns a teacher's logits, and how it relates rotated images to upright ones."""
