"""How good frozen features are: kNN, linear and low-shot probes, rank, spread and similarity.

The `evaluate.Metric` classes live in `hgkd_hf.evaluation.metrics` and `detection`, the only files that import
`evaluate`.
"""

from ..students.features import pooled_features
from .features import Features, extract_features
from .knn import knn_accuracy
from .linear import LinearProbeResult, linear_probe, low_shot_probe
from .protocols import PROTOCOLS, ProtocolSettings, best_device, image_set_features, run_protocols
from .representation import feature_rank, feature_std, linear_cka

__all__ = [
    "PROTOCOLS",
    "Features",
    "LinearProbeResult",
    "ProtocolSettings",
    "best_device",
    "extract_features",
    "feature_rank",
    "feature_std",
    "image_set_features",
    "knn_accuracy",
    "linear_cka",
    "linear_probe",
    "low_shot_probe",
    "pooled_features",
    "run_protocols",
]
