"""What can be said of features without labels: do they collapse, how many directions do they use, are two alike."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_rank(features: Tensor) -> float:
    """Effective rank of features (N, D): exp of the entropy of the normalised singular values, in [1, min(N, D)].

    From Roy & Vetterli 2007 ("The effective rank", EUSIPCO), used as in RankMe (Garrido et al. 2023,
    arXiv:2210.02885): features are not centred, so identical rows have rank 1. All-zero features have rank 0. It grows
    with N while N is small: compare values of the same N.
    """
    singular = torch.linalg.svdvals(_matrix(features, "features"))
    if singular.sum() == 0:
        return 0.0
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Spread of features (N, D): the mean over dimensions of the std of L2-normalised rows, times sqrt(D).

    About 1 where directions are spread evenly, 0 where all rows have one direction: the collapse measure of SimSiam
    (Chen & He 2021, arXiv:2011.10566, section 4.1). Pooled features of most CNNs are not negative, so
    that theirs is far below 1 without any collapse: compare it with that of the same network before training.
    Measured on CIFAR-10: untrained ResNet-10, -18, -50, -152 0.18, 0.12, 0.05, 0.003, ConvNeXt V2 0.92; trained
    students 0.14 (H-GKD, ResNet-18) to 0.64 (MSDCRD, ResNet-10).
    """
    features = _matrix(features, "features")
    unit = F.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)  # an untrained network's may be 1e-20
    return (unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5).item()


@torch.no_grad()
def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of two representations of the same N images, debiased linear CKA; x is (N, D), y (N, E).

    1 if x is y up to rotation, shift and isotropic scale; about 0, or slightly below, if they are independent. From
    Kornblith et al. 2019 (arXiv:1905.00414, section 3) with the unbiased HSIC of Song et al. 2007 in feature space, as
    in the authors' code: the plain estimate nears 1 for any x and y once D and E are large against N. NaN (undefined)
    if the rows of either are all the same.

    Raises:
        ValueError: if a shape does not fit, or N < 4 (the unbiased estimate needs four images).
    """
    x, y = _matrix(x, "x"), _matrix(y, "y")
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}: expected the same number, at least 4.")
    x_centred, y_centred = x - x.mean(0), y - y.mean(0)
    # What is left of identical rows after centring is rounding, which must not be compared.
    if x_centred.norm() <= 1e-7 * x.norm() or y_centred.norm() <= 1e-7 * y.norm():
        return float("nan")
    shared = _debiased_dot_product(x_centred, y_centred)
    own = _debiased_dot_product(x_centred, x_centred) * _debiased_dot_product(y_centred, y_centred)
    return (shared / own.sqrt()).item()


def _debiased_dot_product(x: Tensor, y: Tensor) -> Tensor:
    """N(N-3) times the unbiased HSIC of centred x and y, in O(DE) memory."""
    n = len(x)
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)
    corrections = x_norms.sum() * y_norms.sum() / ((n - 1) * (n - 2)) - n / (n - 2) * (x_norms @ y_norms)
    return (x.T @ y).square().sum() + corrections


def _matrix(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(features.shape)}, expected (N, D).")
    return features.double()
