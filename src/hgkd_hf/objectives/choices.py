"""The values of the objectives' settings, for annotations; without torch, so that `--help` is quick."""

from typing import Literal

# Of feature_regression.
FeatureLoss = Literal["cosine+smooth-l1", "smooth-l1", "mse", "cosine"]
TargetNormKind = Literal["whiten", "standardize", "layer-norm", "none"]
# Of multi_scale_contrastive.
Layout = Literal["grid", "sliding"]
Selection = Literal["all", "consistent", "sdd"]
