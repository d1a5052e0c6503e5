"""Tests of modeling_glcm_mae.texture."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.feature import graycomatrix, graycoprops

from modeling_glcm_mae.texture import texture_features, texture_fidelity

PHANTOM = json.loads((Path(__file__).parent / "data" / "ibsi_digital_phantom.json").read_text(encoding="utf-8"))
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))


def three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def count_pairs(image: np.ndarray, mask: np.ndarray, offset: tuple[int, int], levels: int) -> torch.Tensor:
    """Symmetric joint counts, pair by pair: independent of the package's own co-occurrence code."""
    counts = torch.zeros(levels, levels, dtype=torch.float64)
    height, width = image.shape
    for y, x in np.ndindex(height, width):
        v, u = y + offset[0], x + offset[1]
        if 0 <= v < height and 0 <= u < width and mask[y, x] and mask[v, u]:
            i, j = image[y, x] - 1, image[v, u] - 1
            counts[i, j] += 1
            counts[j, i] += 1
    return counts


def phantom_matrices() -> torch.Tensor:
    image, mask = np.array(PHANTOM["image"]), np.array(PHANTOM["mask"], dtype=bool)
    slices = [[count_pairs(i, m, o, levels=6) for o in DIRECTIONS] for i, m in zip(image, mask, strict=True)]
    return torch.stack([torch.stack(directions) for directions in slices])  # (slices, directions, 6, 6)


@pytest.fixture(scope="module")
def phantom_features() -> dict[str, torch.Tensor]:
    return texture_features(phantom_matrices())


@pytest.fixture
def positive_matrix() -> torch.Tensor:
    return torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1


def test_the_phantom_hides_a_value_outside_its_mask():
    image, mask = np.array(PHANTOM["image"]), np.array(PHANTOM["mask"], dtype=bool)
    assert image.max() == 9 and image[mask].max() == 6


@pytest.mark.parametrize("name", sorted(PHANTOM["reference"]))
def test_ibsi_digital_phantom(phantom_features, name):
    assert three_digits(phantom_features[name].mean().item()) == PHANTOM["reference"][name]


def test_keys_are_the_25_of_ibsi(phantom_features):
    assert len(PHANTOM["reference"]) == 25
    assert set(phantom_features) == set(PHANTOM["reference"])


def test_phantom_in_float32(phantom_features):
    single = texture_features(phantom_matrices().float())
    for name, value in phantom_features.items():
        torch.testing.assert_close(single[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_skimage(symmetric):
    levels = 8
    image = np.random.default_rng(0).integers(0, levels, (24, 31)).astype(np.uint8)
    image[:, 1:] = np.where(image[:, 1:] % 2, image[:, :-1], image[:, 1:])  # correlated neighbours
    matrix = graycomatrix(image, [1, 3], [0, math.pi / 4, math.pi / 2], levels, symmetric=symmetric, normed=True)
    ours = texture_features(torch.from_numpy(matrix).permute(2, 3, 0, 1))
    pairs = {"contrast": "contrast", "dissimilarity": "dissimilarity", "correlation": "corr", "ASM": "energy"}
    # scikit-image calls the inverse difference moment "homogeneity" and the root of the second moment "energy".
    for theirs, name in (pairs | {"homogeneity": "inv_diff_mom"}).items():
        np.testing.assert_allclose(ours[name].numpy(), graycoprops(matrix, theirs), rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(ours["energy"].sqrt().numpy(), graycoprops(matrix, "energy"), rtol=1e-9)
    # scikit-image's entropy is in nats, IBSI's in bits; its mean and variance count grey levels from 0.
    np.testing.assert_allclose(ours["joint_entr"].numpy() * math.log(2), graycoprops(matrix, "entropy"), rtol=1e-9)
    np.testing.assert_allclose(ours["joint_avg"].numpy() - 1, graycoprops(matrix, "mean"), rtol=1e-9)
    np.testing.assert_allclose(ours["joint_var"].numpy(), graycoprops(matrix, "variance"), rtol=1e-9)


def test_information_correlations_from_their_definition(positive_matrix):
    features = texture_features(positive_matrix)
    for n, matrix in enumerate(positive_matrix.numpy()):
        p = matrix / matrix.sum()
        outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
        h, h1, h2 = -(p * np.log2(p)).sum(), -(p * np.log2(outer)).sum(), -(outer * np.log2(outer)).sum()
        h_row = -(p.sum(1) * np.log2(p.sum(1))).sum()
        assert features["info_corr1"][n].item() == pytest.approx((h - h1) / h_row, rel=1e-9)
        assert features["info_corr2"][n].item() == pytest.approx(math.sqrt(1 - math.exp(-2 * (h2 - h))), rel=1e-9)


def test_counts_and_probabilities_agree(positive_matrix):
    counts, probabilities = texture_features(positive_matrix * 240), texture_features(positive_matrix / 7)
    for name in counts:
        torch.testing.assert_close(counts[name], probabilities[name], msg=name)


@pytest.mark.parametrize("name", sorted(PHANTOM["reference"]))
def test_gradcheck(positive_matrix, name):
    matrix = positive_matrix.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: texture_features(m)[name], (matrix,))
    (gradient,) = torch.autograd.grad(texture_features(matrix)[name].sum(), matrix)
    assert gradient.abs().max() > 0  # two zero gradients would agree as well


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["one cell", "one off-diagonal cell", "one row", "diagonal", "zero", "uniform"])
def test_edges_are_finite(case, dtype):
    matrix = torch.zeros(6, 6, dtype=dtype)
    if case == "one cell":
        matrix[2, 2] = 240
    elif case == "one off-diagonal cell":
        matrix[1, 4] = 3
    elif case == "one row":
        matrix[3] = 1
    elif case == "diagonal":
        matrix.fill_diagonal_(7)
    elif case == "uniform":
        matrix += 1
    matrix.requires_grad_()
    for name, value in texture_features(matrix).items():
        assert value.isfinite(), name
        (gradient,) = torch.autograd.grad(value, matrix, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.isfinite().all(), name


def test_documented_values_at_the_edges():
    empty = texture_features(torch.zeros(3, 4, 4))
    assert all((value == 0).all() and value.shape == (3,) for value in empty.values())
    flat = torch.zeros(4, 4)
    flat[1, 1] = 12
    flat_features = {name: value.item() for name, value in texture_features(flat).items()}
    assert flat_features["corr"] == 1 and flat_features["info_corr1"] == 0 and flat_features["info_corr2"] == 0
    assert flat_features["joint_max"] == 1 and flat_features["joint_avg"] == 2 and flat_features["auto_corr"] == 4
    assert flat_features["joint_entr"] == 0 and flat_features["contrast"] == 0 and flat_features["inv_diff"] == 1


def test_batch_equals_loop():
    matrices = phantom_matrices()
    together = texture_features(matrices)
    for s in range(matrices.shape[0]):
        for d in range(matrices.shape[1]):
            alone = texture_features(matrices[s, d])
            for name, value in together.items():
                assert value.shape == matrices.shape[:2]
                torch.testing.assert_close(value[s, d], alone[name], msg=name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype(given, expected):
    assert {v.dtype for v in texture_features(torch.ones(3, 3, dtype=given)).values()} == {expected}


def test_same_under_autocast(positive_matrix):
    plain = texture_features(positive_matrix.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = texture_features(positive_matrix.float())
    for name in plain:
        assert mixed[name].dtype == torch.float32 and torch.equal(mixed[name], plain[name]), name


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 0, 0)])
def test_bad_shape_is_named(shape):
    with pytest.raises(ValueError, match="matrix.*shape"):
        texture_features(torch.zeros(shape))


# texture_fidelity


def noise(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_fidelity_of_a_copy():
    report = texture_fidelity(noise(), noise(), value_range=(-1.0, 1.0))
    assert set(report) == {"glcm_l1", "gradient_energy_ratio"}
    assert report["glcm_l1"].item() == 0 and report["gradient_energy_ratio"].item() == 1


def test_fidelity_of_a_blurred_and_a_noisy_copy():
    target = noise()
    blurred = torch.nn.functional.avg_pool2d(target[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    report = texture_fidelity(blurred, target, value_range=(-1.0, 1.0))
    assert report["gradient_energy_ratio"].item() < 0.5 and report["glcm_l1"].item() > 0.5
    noisy = target + noise(size=16).flip(-1)
    assert texture_fidelity(noisy, target, value_range=(-1.0, 1.0))["gradient_energy_ratio"].item() > 1


def test_fidelity_by_hand():
    # Two levels over [0, 1]. Target: columns 0 1 0, two rows. Prediction: 0 0 0 in the first row, the target below.
    target = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
    pred = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    # Right: target 01 twice, 10 twice of 4; pred 00 twice, 01 once, 10 once: |2| + |-1| + |-1| = 4, over 4 pairs.
    # Down: target 00 twice, 11 once of 3; pred 00 twice, 01 once: |-1| + |1| = 2, over 3 pairs.
    report = texture_fidelity(pred, target, value_range=(0.0, 1.0), levels=2)
    assert report["glcm_l1"].item() == pytest.approx((1 + 2 / 3) / 2)
    assert report["gradient_energy_ratio"].item() == pytest.approx(0.5)


def test_fidelity_worst_case_and_clamping():
    low, high = torch.full((2, 4, 4), -3.0), torch.full((2, 4, 4), 8.0)
    report = texture_fidelity(low, high, value_range=(0.0, 1.0))
    assert report["glcm_l1"].item() == 2 and report["gradient_energy_ratio"].item() == 1  # both flat
    assert texture_fidelity(low, torch.zeros(2, 4, 4), value_range=(0.0, 1.0))["glcm_l1"].item() == 0
    assert texture_fidelity(noise(2, 4), high[:2], value_range=(0.0, 1.0))["gradient_energy_ratio"].isinf()


def test_fidelity_is_the_mean_over_patches():
    pred, target = noise().flip(0), noise()
    alone = [
        texture_fidelity(p[None], t[None], value_range=(-1, 1))["glcm_l1"] for p, t in zip(pred, target, strict=True)
    ]
    together = texture_fidelity(pred, target, value_range=(-1, 1))["glcm_l1"]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_fidelity_takes_half_precision_and_keeps_no_graph():
    pred = noise().bfloat16().requires_grad_()
    report = texture_fidelity(pred, noise(), value_range=(-1.0, 1.0))
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in report.values())


@pytest.mark.parametrize("shapes", [((2, 4, 4), (3, 4, 4)), ((4, 4), (4, 4)), ((2, 1, 4), (2, 1, 4))])
def test_fidelity_bad_shape_is_named(shapes):
    with pytest.raises(ValueError, match="shape"):
        texture_fidelity(torch.zeros(shapes[0]), torch.zeros(shapes[1]), value_range=(0.0, 1.0))
