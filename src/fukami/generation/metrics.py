"""Metrics of generated images: distances between the features of generated and of real images.

The distances depend on the feature extractor and on the number of images; compare only values for which both are equal.
"""

import torch
from torch import Tensor

DUPLICATE_QUANTILE = 0.01  # quantile of the nearest-neighbor distances of real images; duplicates lie below it
KERNEL_DEGREE = 3  # degree of the polynomial kernel
CHUNK_SIZE = 1000  # images whose distances to all others are in memory at the same time


def compute_duplicate_fraction(generated: Tensor, real: Tensor) -> float:
    """Compute the fraction of generated images that are near-duplicates of other generated images.

    A duplicate's nearest-neighbor distance is at most the 1 % quantile of those of real images. ``generated`` and
    ``real`` are features ``(N, F)`` of the same number of images. The fraction is near 0.01 if the generated images
    vary as much as the real ones, and near 1 after mode collapse.
    """
    threshold = compute_nearest_distances(real).quantile(DUPLICATE_QUANTILE)
    return float((compute_nearest_distances(generated) <= threshold).double().mean())


def compute_frechet_distance(one: Tensor, other: Tensor) -> float:
    """Compute the Fréchet distance of normal distributions fitted to features ``(N, F)`` and ``(M, F)``.

    It is called FID for features of the published Inception v3 (Heusel et al., "GANs Trained by a Two Time-Scale Update
    Rule Converge to a Local Nash Equilibrium", NIPS 2017, equation 6). With centered features X and Y, the trace of
    the square root of the covariances' product is the sum of the singular values of X Yᵀ, which needs no matrix square
    root.
    """
    means, centered, roots = [], [], []
    for features in (one, other):
        features = features.double()
        means.append(features.mean(0))
        centered.append((features - means[-1]) / (len(features) - 1) ** 0.5)
        roots.append(torch.linalg.qr(centered[-1], mode="r").R)
    trace_of_root = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(features.square().sum() for features in centered)
    return float((means[0] - means[1]).square().sum() + traces - 2 * trace_of_root)


def compute_kernel_distance(one: Tensor, other: Tensor) -> float:
    """Compute the unbiased squared maximum mean discrepancy of features ``(N, F)`` and ``(M, F)``, with a cubic kernel.

    It is called KID for features of the published Inception v3 (Binkowski et al., "Demystifying MMD GANs", ICLR 2018,
    section 4). The estimate may be slightly negative.
    """
    one, other = one.double(), other.double()

    def compute_kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / left.shape[1] + 1) ** KERNEL_DEGREE

    def sum_kernel(left: Tensor, right: Tensor) -> float:
        return sum(float(compute_kernel(rows, right).sum()) for rows in torch.split(left, CHUNK_SIZE))

    within = 0.0
    for features in (one, other):
        count = len(features)
        diagonal = float(((features.square().sum(1) / features.shape[1] + 1) ** KERNEL_DEGREE).sum())
        within += (sum_kernel(features, features) - diagonal) / (count * (count - 1))
    return within - 2 * sum_kernel(one, other) / (len(one) * len(other))


def compute_nearest_distances(features: Tensor) -> Tensor:
    """Compute the distance ``(N,)`` of each of the features ``(N, F)`` to its nearest neighbor."""
    features = features.double()
    nearest = []
    for start in range(0, len(features), CHUNK_SIZE):
        # exact also for equal features, unlike the default mode
        distances = torch.cdist(
            features[start : start + CHUNK_SIZE], features, compute_mode="donot_use_mm_for_euclid_dist"
        )
        distances.diagonal(start).fill_(torch.inf)
        nearest.append(distances.amin(1))
    return torch.cat(nearest)
