"""How images that were made are judged beside real ones, by the features that a network sees in both.

The distances depend on the network and on the number of images; neither may be compared with those of another network
or another number.
"""

import torch
from torch import Tensor

REPETITION_QUANTILE = 0.01  # share of real images that have a neighbour as near as what counts as repeated
KERNEL_DEGREE = 3  # of the polynomial kernel


def compute_repetition(generated: Tensor, real: Tensor) -> float:
    """The share of made images whose nearest made neighbour is nearer than that of all but 1 % of the real ones is.

    ``generated`` and ``real`` are as many features ``(N, F)``. It is near 0.01 where there is as much variety as in the
    real ones, near 1 where a few images come again and again.
    """
    usual = compute_nearest_distances(real).quantile(REPETITION_QUANTILE)
    return float((compute_nearest_distances(generated) < usual).double().mean())


def compute_frechet_distance(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two normal distributions with the moments of features ``(N, F)`` and ``(M, F)``.

    It is called FID where the features are those of the published Inception v3. Heusel et al., "GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017, equation 6. With centred features X and
    Y, the trace of the root of the covariances' product is the sum of the singular values of X Yᵀ, which needs no root
    of a matrix.
    """
    means, centred, roots = [], [], []
    for features in (one, other):
        features = features.double()
        means.append(features.mean(0))
        centred.append((features - means[-1]) / (len(features) - 1) ** 0.5)
        roots.append(torch.linalg.qr(centred[-1], mode="r").R)
    common = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(each.square().sum() for each in centred)
    return float((means[0] - means[1]).square().sum() + spread - 2 * common)


def compute_kernel_distance(one: Tensor, other: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features ``(N, F)`` and ``(M, F)``, with a cubic kernel.

    It is called KID where the features are those of the published Inception v3. Binkowski et al., "Demystifying MMD
    GANs", ICLR 2018, section 4. It may be a little below 0.
    """
    one, other = one.double(), other.double()

    def products(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / left.shape[1] + 1) ** KERNEL_DEGREE

    own = 0.0
    for features in (one, other):
        each, count = products(features, features), len(features)
        own += float((each.sum() - each.trace()) / (count * (count - 1)))
    return own - 2 * float(products(one, other).mean())


def compute_nearest_distances(features: Tensor) -> Tensor:
    """The distance of each of ``(N, F)`` to the nearest other one, ``(N,)``."""
    distances = torch.cdist(features.double(), features.double())
    return distances.fill_diagonal_(torch.inf).amin(1)
