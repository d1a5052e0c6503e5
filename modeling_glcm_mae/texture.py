# Copyright 2026 The GLCM-MAE contributors. Licensed under the Apache License, Version 2.0.
"""Texture measures on grey-level co-occurrence matrices.

`texture_features` turns a matrix into the 25 co-occurrence features of the Image Biomarker Standardisation Initiative
(IBSI). `texture_fidelity` says how much of the texture of a target a reconstruction has kept; it is a measure to
report, not a loss.

Axis letters: M patches or images, H W their pixels, D offsets, K grey levels.

Sources:
    Zwanenburg, Leger, Vallières, Löck, "Image biomarker standardisation initiative", reference manual, version 11,
    section 3.6 (arXiv:1612.07003).
    Haralick, Shanmugam, Dinstein, "Textural Features for Image Classification", IEEE Transactions on Systems, Man, and
    Cybernetics SMC-3(6), 1973, pages 610-621.
"""

import torch

from .glcm import cooccurrence_matrix
from .glcm_support import check_stack

__all__ = ["texture_features", "texture_fidelity"]


# Right and down at distance one: the neighbours of the published loss. Fixed, so that reports can be compared.
FIDELITY_OFFSETS = ((0, 1), (1, 0))


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Shannon entropy in bits over the last axis, with `0 log 0 = 0` and a bounded gradient at zero.

    The exact derivative `-log2 p - 1 / ln 2` is infinite at `p = 0`, and a single empty cell would turn every gradient
    into NaN. Below the smallest normal number the logarithm is held constant, which changes no value.
    """
    floor = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=floor).log2()).sum(-1)


def _fold(joint: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Add up the cells of `joint` `(..., K, K)` that share an `index` `(K, K)`: `(..., size)`."""
    folded = joint.new_zeros(*joint.shape[:-2], size)
    return folded.index_add(-1, index.flatten(), joint.flatten(-2))


def _central_moment(probabilities: torch.Tensor, values: torch.Tensor, mean: torch.Tensor, order: int) -> torch.Tensor:
    """Moment `sum_k (v_k - mean)^order p_k` over the last axis."""
    return ((values - mean.unsqueeze(-1)) ** order * probabilities).sum(-1)


def texture_features(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The 25 IBSI co-occurrence features of each matrix, differentiable in its cells.

    The matrix is divided by its sum, which gives the joint probabilities `p_ij` that grey level `i` has the neighbour
    `j`. Grey levels are numbered `1 .. K`, as IBSI has it, so that features which contain a level itself (`joint_avg`,
    `sum_avg`, `auto_corr`) agree with other IBSI-conforming software. With `p_i.` and `p_.j` the row and column sums,
    `p^-_k` the probability that `|i - j| = k` (`k = 0 .. K-1`), `p^+_k` that `i + j = k` (`k = 2 .. 2K`),
    `mu_x, mu_y, s_x, s_y` mean and standard deviation of `p_i.` and `p_.j`, and `H` an entropy in bits:

    | key | formula | key | formula |
    |---|---|---|---|
    | `joint_max` | max p_ij | `inv_diff` | sum p^-_k / (1 + k) |
    | `joint_avg` | mu_x = sum i p_ij | `inv_diff_norm` | sum p^-_k / (1 + k / K) |
    | `joint_var` | sum (i - mu_x)^2 p_ij | `inv_diff_mom` | sum p^-_k / (1 + k^2) |
    | `joint_entr` | H(p_ij) | `inv_diff_mom_norm` | sum p^-_k / (1 + k^2 / K^2) |
    | `diff_avg` | mu_d = sum k p^-_k | `inv_var` | sum over k > 0 of p^-_k / k^2 |
    | `diff_var` | sum (k - mu_d)^2 p^-_k | `corr` | sum (i - mu_x)(j - mu_y) p_ij / (s_x s_y) |
    | `diff_entr` | H(p^-_k) | `auto_corr` | sum i j p_ij |
    | `sum_avg` | mu_s = sum k p^+_k | `clust_tend` | sum (i + j - mu_x - mu_y)^2 p_ij |
    | `sum_var` | sum (k - mu_s)^2 p^+_k | `clust_shade` | the same with power 3 |
    | `sum_entr` | H(p^+_k) | `clust_prom` | the same with power 4 |
    | `energy` | sum p_ij^2 (angular second moment) | `info_corr1` | (H(p_ij) - H1) / H(p_i.) |
    | `contrast` | sum (i - j)^2 p_ij | `info_corr2` | sqrt(1 - exp(-2 (H2 - H(p_ij)))) |
    | `dissimilarity` | sum abs(i - j) p_ij | | |

    `H1 = -sum p_ij log2(p_i. p_.j)` and `H2 = -sum p_i. p_.j log2(p_i. p_.j)` are both equal to `H(p_i.) + H(p_.j)`,
    because the marginals of either weight are `p_i.` and `p_.j`; that sum is what is computed.

    Where a formula has no value, a finite one with a finite gradient is returned:

    - a matrix that sums to zero (no pixel pair counted) has every feature 0;
    - `corr` is 1 and its gradient 0 when all rows or all columns but one are empty (no variance), as in scikit-image;
    - `info_corr1` is 0 when only one row is filled (no entropy), `info_corr2` when rows and columns are independent.

    Entropies are in bits (IBSI); those of scikit-image's `graycoprops` in nats. Its other names for these features:
    "ASM" is `energy`, "energy" the root of it, "homogeneity" `inv_diff_mom`, "correlation" `corr`; its "mean" is
    `joint_avg - 1`, since it counts grey levels from 0.

    IBSI defines the features on symmetric matrices; on others the formulas above hold as they stand. They are features
    of one matrix: averaging over offsets (IBSI "average") or adding the matrices up first (IBSI "merged") is the
    caller's choice.

    Args:
        matrix (`torch.Tensor` of shape `(..., K, K)`):
            Non-negative co-occurrence matrices, counts or probabilities, with any leading axes.

    Returns:
        `dict[str, torch.Tensor]`: 25 tensors of shape `(...)`, float64 if `matrix` is, else float32.

    Example:
        >>> matrix = cooccurrence_matrix(image, levels=16, value_range=(0.0, 1.0), offsets=[(0, 1)], symmetric=True)
        >>> texture_features(matrix)["contrast"].shape  # image (8, 224, 224): one value an image and offset
        torch.Size([8, 1])
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"`matrix` has shape {tuple(matrix.shape)}; expected (..., K, K) with K >= 1.")
    if matrix.is_complex():
        raise ValueError(f"`matrix` has dtype {matrix.dtype}; expected real, non-negative co-occurrence counts.")
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()

    levels = matrix.shape[-1]
    total = matrix.sum((-2, -1), keepdim=True)
    filled = total > 0
    joint = matrix / total.where(filled, torch.ones_like(total))  # (..., K, K)
    filled = filled[..., 0, 0]

    index = torch.arange(levels, device=matrix.device)
    row, column = index[:, None], index[None, :]
    grey = (index + 1).to(matrix.dtype)  # (K,)
    gap = index.to(matrix.dtype)  # |i - j|, (K,)
    total_grey = torch.arange(2, 2 * levels + 1, device=matrix.device).to(matrix.dtype)  # i + j, (2K - 1,)

    by_row, by_column = joint.sum(-1), joint.sum(-2)  # (..., K)
    by_gap = _fold(joint, (row - column).abs(), levels)  # (..., K)
    by_sum = _fold(joint, row + column, 2 * levels - 1)  # (..., 2K - 1)

    mean_row, mean_column = (grey * by_row).sum(-1), (grey * by_column).sum(-1)
    var_row = _central_moment(by_row, grey, mean_row, 2)
    var_column = _central_moment(by_column, grey, mean_column, 2)
    mean_gap = (gap * by_gap).sum(-1)
    mean_sum = (total_grey * by_sum).sum(-1)
    sum_var = _central_moment(by_sum, total_grey, mean_sum, 2)
    entropy_joint, entropy_row, entropy_column = _entropy(joint.flatten(-2)), _entropy(by_row), _entropy(by_column)
    independent = entropy_row + entropy_column  # H1 and H2

    # Both branches of `where` are differentiated, so the denominators are made safe before the division, not after it.
    one, zero = torch.ones_like(mean_row), torch.zeros_like(mean_row)
    negligible = torch.finfo(matrix.dtype).eps  # a variance (grey levels squared) that rounding alone can produce
    varied = (var_row > negligible) & (var_column > negligible)
    deviations = torch.where(varied, var_row, one).sqrt() * torch.where(varied, var_column, one).sqrt()
    from_mean_row, from_mean_column = grey - mean_row.unsqueeze(-1), grey - mean_column.unsqueeze(-1)  # (..., K)
    covariance = (from_mean_row.unsqueeze(-1) * from_mean_column.unsqueeze(-2) * joint).sum((-2, -1))
    undefined_corr = torch.where(filled, one, zero)

    mutual = independent - entropy_joint  # mutual information in bits
    informed = mutual > negligible  # at 0 the slope of the square root is infinite
    dependence = (-torch.expm1(-2.0 * torch.where(informed, mutual, one))).sqrt()
    uncertain = entropy_row > negligible

    return {
        "joint_max": joint.amax((-2, -1)),
        "joint_avg": mean_row,
        "joint_var": var_row,
        "joint_entr": entropy_joint,
        "diff_avg": mean_gap,
        "diff_var": _central_moment(by_gap, gap, mean_gap, 2),
        "diff_entr": _entropy(by_gap),
        "sum_avg": mean_sum,
        "sum_var": sum_var,
        "sum_entr": _entropy(by_sum),
        "energy": joint.square().sum((-2, -1)),
        "contrast": (gap.square() * by_gap).sum(-1),
        "dissimilarity": mean_gap,
        "inv_diff": (by_gap / (1 + gap)).sum(-1),
        "inv_diff_norm": (by_gap / (1 + gap / levels)).sum(-1),
        "inv_diff_mom": (by_gap / (1 + gap.square())).sum(-1),
        "inv_diff_mom_norm": (by_gap / (1 + (gap / levels).square())).sum(-1),
        "inv_var": (by_gap[..., 1:] / gap[1:].square()).sum(-1),
        "corr": torch.where(varied, covariance / deviations, undefined_corr),
        "auto_corr": (grey[:, None] * grey[None, :] * joint).sum((-2, -1)),
        # i + j - mu_x - mu_y is the deviation of i + j from its mean, so these three are moments of `by_sum`.
        "clust_tend": sum_var,
        "clust_shade": _central_moment(by_sum, total_grey, mean_sum, 3),
        "clust_prom": _central_moment(by_sum, total_grey, mean_sum, 4),
        "info_corr1": torch.where(uncertain, -mutual / torch.where(uncertain, entropy_row, one), zero),
        "info_corr2": torch.where(informed, dependence, zero),
    }


@torch.no_grad()
def texture_fidelity(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: tuple[float, float], levels: int = 16
) -> dict[str, torch.Tensor]:
    """How much of the texture of `target` is left in `pred`: two numbers to report beside any reconstruction loss.

    They do not depend on the loss that a model was trained with: the matrices are binned hard, on few levels, so runs
    with different kernels, levels and weights can be compared.

    - `glcm_l1`: mean over M and the offsets (0, 1) and (1, 0) of `sum_ij |P_ij - T_ij|`, where P and T are the
      hard-binned co-occurrence matrices of `pred` and `target`, not symmetric, each divided by its sum. 0 is best; 2
      says that no pair of grey levels occurs in both. Values outside `value_range` are clamped into it first.
    - `gradient_energy_ratio`: mean of `|x[h, w+1] - x[h, w]|` in `pred` over that in `target`. 1 is best, less is blur,
      more is noise. Nothing is clamped. Two flat inputs give 1; a flat `target` alone gives infinity.

    Args:
        pred (`torch.Tensor` of shape `(M, H, W)`):
            Reconstructed patches or images of one channel.
        target (`torch.Tensor` of shape `(M, H, W)`):
            The originals, in the same units.
        value_range (`tuple[float, float]`):
            Lowest and highest value of the grey scale, in those units (for a model: its `glcm_value_range`).
        levels (`int`, *optional*, defaults to 16):
            Number of grey levels K. A 16x16 patch has 240 pairs an offset, so many more levels would compare noise.

    Returns:
        `dict[str, torch.Tensor]`: `glcm_l1` and `gradient_energy_ratio`, scalars without gradient (NaN when M is 0).
    """
    check_stack("pred", pred, "(M, H, W)", 3)
    check_stack("target", target, "(M, H, W)", 3)
    if pred.shape != target.shape:
        raise ValueError(
            f"`pred` has shape {tuple(pred.shape)} and `target` {tuple(target.shape)}; expected (M, H, W) twice."
        )
    if pred.shape[1] < 2 or pred.shape[2] < 2:
        raise ValueError(f"`pred` has shape {tuple(pred.shape)}; H and W must be at least 2 to have neighbours.")
    pred, target = (x if x.dtype == torch.float64 else x.float() for x in (pred, target))

    both = cooccurrence_matrix(
        torch.stack((pred, target)),  # (2, M, H, W)
        levels=levels,
        value_range=value_range,
        offsets=FIDELITY_OFFSETS,
        kernel="hard",
        normalize=True,
    )  # (2, M, D, K, K)
    distance = (both[0] - both[1]).abs().sum((-2, -1))  # (M, D)

    energy_pred, energy_target = (x.diff(dim=-1).abs().mean() for x in (pred, target))
    flat = (energy_pred == 0) & (energy_target == 0)
    ratio = torch.where(flat, torch.ones_like(energy_pred), energy_pred / energy_target)
    return {"glcm_l1": distance.mean(), "gradient_energy_ratio": ratio}
