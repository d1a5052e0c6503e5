"""Tests of modeling_glcm_mae.glcm."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import graycomatrix
from torch.nn.functional import avg_pool2d, pad

from modeling_glcm_mae import (
    GLCMLoss,
    cooccurrence_matrix,
    glcm,
    glcm_backends,
    glcm_loss,
    glcm_sparse,
    offsets_from_angles,
    soft_assignment,
    ssim_loss,
    texture_fidelity,
)
from modeling_glcm_mae.glcm_support import place_of_counting

DISTANCES, ANGLES = [1, 3], [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
OFFSETS = [[0, 1], [1, 1], [1, 0], [1, -1], [0, 3], [2, 2], [3, 0], [2, -2]]  # 3 sin 45 degrees is 2.1
RANGE = (-1.0, 1.0)
BACKENDS = ["dense", "sparse", "numba"]
# Kernels with a gradient: the published sharpness, and two at which levels overlap.
SOFT = [("sigmoid", 30.0), ("sigmoid", 5.0), ("sigmoid", 1.5), ("linear", 30.0)]


def patches(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise that spans RANGE."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def count_pairs(weights: np.ndarray, offset: list[int], mask: np.ndarray | None = None) -> np.ndarray:
    """The definition, pair by pair: `(H, W, K)` -> `(K, K)`."""
    height, width, levels = weights.shape
    counts = np.zeros((levels, levels))
    for y, x in np.ndindex(height, width):
        v, u = y + offset[0], x + offset[1]
        if 0 <= v < height and 0 <= u < width and (mask is None or (mask[y, x] and mask[v, u])):
            counts += np.outer(weights[y, x], weights[v, u])
    return counts


# Against scikit-image


def check_against_skimage(image: np.ndarray, levels: int) -> None:
    for symmetric in (False, True):
        for normed in (False, True):
            expected = graycomatrix(image, DISTANCES, ANGLES, levels=levels, symmetric=symmetric, normed=normed)
            expected = expected.transpose(2, 3, 0, 1).reshape(-1, levels, levels)  # distance by distance
            found = cooccurrence_matrix(
                torch.from_numpy(image.astype(np.float64)),
                levels=levels,
                value_range=(-0.5, levels - 0.5),  # whole numbers are the centres of their levels
                offsets=offsets_from_angles(DISTANCES, ANGLES),
                kernel="hard",
                symmetric=symmetric,
                normalize=normed,
            )
            np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("seed", range(20))
def test_hard_kernel_equals_skimage_on_random_images(seed):
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(2, 40))
    check_against_skimage(rng.integers(0, levels, size=rng.integers(4, 33, size=2), dtype=np.uint8), levels)


def test_hard_kernel_equals_skimage_on_real_images(busi_images):
    for path in busi_images:
        image = np.asarray(Image.open(path).convert("L"))
        check_against_skimage(image[::5, ::5] // 8, 32)


def test_hard_kernel_bins_the_full_byte_range_as_integer_division_does(busi_images):
    # The usual case: a byte image rescaled and normalised, its range stated in the normalised units.
    mean, std = 0.456, 0.224
    image = np.asarray(Image.open(busi_images[0]).convert("L"))[::4, ::4]
    pixels = (torch.from_numpy(image / np.float32(255)) - mean) / std
    found = cooccurrence_matrix(
        pixels, levels=16, value_range=(-mean / std, (1 - mean) / std), offsets=[[0, 1]], kernel="hard"
    )
    levels = np.minimum(np.floor(image / 255 * 16), 15).astype(np.uint8)
    np.testing.assert_array_equal(found[0].numpy(), graycomatrix(levels, [1], [0], levels=16)[:, :, 0, 0])


def test_offsets_from_angles():
    assert offsets_from_angles(DISTANCES, ANGLES) == OFFSETS
    assert offsets_from_angles([2], [math.pi, -math.pi / 2]) == [[0, -2], [-2, 0]]
    with pytest.raises(ValueError, match="at least 1 pixel"):
        offsets_from_angles([0], [0.0])


# Weights of the kernels


@pytest.mark.parametrize("levels", [2, 7, 32, 256])
@pytest.mark.parametrize(("kernel", "sharpness"), [*SOFT, ("sigmoid", 1000.0), ("hard", 30.0)])
def test_weights_of_a_pixel_sum_to_one(kernel, sharpness, levels):
    values = torch.cat([torch.linspace(-1, 1, 2001), torch.tensor([-5.0, 5.0])]).double()
    weights = soft_assignment(values, levels=levels, value_range=RANGE, kernel=kernel, sharpness=sharpness)
    assert weights.shape == (2003, levels)
    assert weights.min() >= -1e-12
    # The mirrored terms stop after one reflection: exp(-levels * sharpness) is missing.
    torch.testing.assert_close(
        weights.sum(-1), torch.ones(2003).double(), rtol=0, atol=1e-9 + 2 * math.exp(-levels * sharpness)
    )


def test_sigmoid_tends_to_hard_binning():
    values = patches(500, dtype=torch.float64)
    arguments = {"levels": 16, "value_range": RANGE}
    hard = soft_assignment(values, kernel="hard", **arguments)
    gaps = [
        (soft_assignment(values, sharpness=sharpness, **arguments) - hard).abs().mean().item()
        for sharpness in (1.0, 10.0, 100.0, 1e6)
    ]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.05 and gaps[-1] < 1e-6


def test_sigmoid_by_hand():
    # Two levels on [0, 2], so w = 1; t = 1/2; x = 0.75 lies in level 0, a quarter from level 1.
    def s(v: float) -> float:
        return 1 / (1 + math.exp(-2 * v))

    first = (s(0.75) - s(-0.25)) + (s(-0.75) - s(-1.75)) + (s(3.25) - s(2.25))
    second = (s(-0.25) - s(-1.25)) + (s(-1.75) - s(-2.75)) + (s(2.25) - s(1.25))
    found = soft_assignment(torch.tensor([0.75]).double(), levels=2, value_range=(0, 2), sharpness=2.0)
    torch.testing.assert_close(found, torch.tensor([[first, second]], dtype=torch.float64), rtol=1e-12, atol=0)


def test_linear_by_hand():
    # Level centres at 0.5, 1.5, 2.5.
    values = torch.tensor([-1.0, 0.0, 0.5, 0.75, 1.5, 2.0, 2.5, 3.0, 9.0])
    expected = [[1, 0, 0]] * 3 + [[0.75, 0.25, 0], [0, 1, 0], [0, 0.5, 0.5]] + [[0, 0, 1]] * 3
    found = soft_assignment(values, levels=3, value_range=(0, 3), kernel="linear")
    torch.testing.assert_close(found, torch.tensor(expected).float())


def test_hard_puts_the_upper_end_into_the_last_level():
    found = soft_assignment(torch.tensor([0.0, 0.99, 1.0, 3.0]), levels=3, value_range=(0, 3), kernel="hard")
    assert found.argmax(-1).tolist() == [0, 0, 1, 2] and found.sum() == 4


# Matrices


@pytest.mark.parametrize("offset", [[0, 1], [2, 0], [-1, 0], [0, -2], [2, 3], [-2, 3], [2, -3], [-4, -6]])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", ["sigmoid", "linear", "hard"])
def test_matrix_is_the_sum_over_pairs(kernel, masked, offset):
    image = patches(5, 7, dtype=torch.float64)  # not square
    mask = (patches(5, 7, seed=1) > -0.6) if masked else None
    arguments = {"levels": 4, "value_range": RANGE, "kernel": kernel, "sharpness": 3.0}
    weights = soft_assignment(image, **arguments).numpy()
    expected = count_pairs(weights, offset, mask.numpy() if masked else None)
    assert expected.sum() > 0 or offset == [-4, -6]
    found = cooccurrence_matrix(image, offsets=[offset], mask=mask, **arguments)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


def test_a_reversed_offset_transposes_the_matrix():
    there, back = cooccurrence_matrix(patches(9, 6), levels=5, value_range=RANGE, offsets=[[2, -1], [-2, 1]])
    torch.testing.assert_close(there, back.T)


@pytest.mark.parametrize(("kernel", "sharpness"), SOFT)
def test_flags_of_the_matrix(kernel, sharpness):
    arguments = {"levels": 6, "value_range": RANGE, "offsets": OFFSETS[:3], "kernel": kernel, "sharpness": sharpness}
    image = patches(2, 8, 8, dtype=torch.float64)
    plain = cooccurrence_matrix(image, **arguments)
    pairs = torch.tensor([56.0, 49.0, 56.0]).double().expand(2, 3)
    torch.testing.assert_close(plain.sum((-2, -1)), pairs, rtol=1e-3, atol=0)  # sharpness 1.5: almost 1 a pixel
    symmetric = cooccurrence_matrix(image, symmetric=True, **arguments)
    torch.testing.assert_close(symmetric, plain + plain.mT)
    for counts, flag in ((plain, False), (symmetric, True)):
        found = cooccurrence_matrix(image, symmetric=flag, normalize=True, **arguments)
        torch.testing.assert_close(found, counts / counts.sum((-2, -1), keepdim=True))


def test_hard_counts_beyond_the_whole_numbers_of_float32():
    # A film with a black background: more than 2^24 pairs in one cell.
    found = cooccurrence_matrix(
        torch.zeros(4200, 4200), levels=2, value_range=(0, 1), offsets=[[0, 1]], kernel="hard", symmetric=True
    )
    assert found[0, 0, 0].item() == 2 * 4200 * 4199


def test_leading_axes_are_a_loop():
    images = patches(2, 3, 6, 8)
    arguments = {"levels": 5, "value_range": RANGE, "offsets": [[0, 1], [1, -1]], "kernel": "linear"}
    together = cooccurrence_matrix(images, **arguments)
    assert together.shape == (2, 3, 2, 5, 5)
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(together[index], cooccurrence_matrix(images[index], **arguments))


def test_a_mask_without_pairs_gives_zeros_and_a_zero_gradient():
    image = patches(6, 6).requires_grad_()
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2, 2] = True
    for normalize in (False, True):
        found = cooccurrence_matrix(
            image, levels=4, value_range=RANGE, offsets=[[0, 1]], mask=mask, normalize=normalize
        )
        assert found.abs().max() == 0
        (gradient,) = torch.autograd.grad(1e3 * found.sum(), image)
        assert gradient.abs().max() == 0


def test_result_dtype():
    arguments = {"levels": 4, "value_range": RANGE, "offsets": [[0, 1]]}
    for given, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert cooccurrence_matrix(patches(6, 6).to(given), **arguments).dtype == expected


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("kernel", ["sigmoid", "linear", "hard"])
def test_what_lies_outside_the_mask_does_not_matter(kernel, outside):
    image, mask = patches(2, 9, 8), torch.zeros(2, 9, 8, dtype=torch.bool)
    mask[:, 2:7, 1:6] = True
    mask[1, 4, 3] = False  # a hole, too
    found = []
    for filled in (image, image.masked_fill(~mask, outside)):
        filled = filled.requires_grad_()
        matrix = cooccurrence_matrix(
            filled, levels=6, value_range=RANGE, offsets=[[0, 1], [1, -1]], kernel=kernel, mask=mask, normalize=True
        )
        found.append([matrix.detach()])
        if kernel != "hard":
            (gradient,) = torch.autograd.grad(matrix.square().sum(), filled)
            assert gradient[mask].abs().sum() > 0 and gradient[~mask].abs().max() == 0
            found[-1].append(gradient)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_pixel_inside_the_mask_that_is_not_a_number_shows():
    image, mask = patches(8, 8), torch.ones(8, 8, dtype=torch.bool)
    image[4, 4] = math.nan
    for kernel in ("sigmoid", "linear", "hard"):
        matrix = cooccurrence_matrix(image, levels=6, value_range=RANGE, offsets=[[0, 1]], kernel=kernel, mask=mask)
        assert matrix.isnan().any(), kernel


def test_devices_without_float64_leave_counts_in_it_to_the_cpu(monkeypatch):
    mps, cuda, cpu = (torch.device(name) for name in ("mps", "cuda", "cpu"))
    assert place_of_counting(mps, torch.float64) == cpu
    assert place_of_counting(mps, torch.float32) == mps
    assert place_of_counting(cuda, torch.float64) == cuda
    # Asked, and obeyed: nothing can be brought back from a place that holds no data.
    asked = []
    for module in (glcm, glcm_backends):
        monkeypatch.setattr(
            module, "place_of_counting", lambda *question: asked.append(question) or torch.device("meta")
        )
    wide = LOSS | {"sharpness": 5.0, "backend": "sparse"}
    for compute in (
        lambda: cooccurrence_matrix(patches(8, 8), kernel="hard", **LOSS),
        lambda: glcm_loss(patches(2, 8, 8), patches(2, 8, 8), **wide),
    ):
        with pytest.raises(NotImplementedError, match="meta"):
            compute()
    assert asked == [(cpu, torch.float64)] * 2


# Gradients


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("kernel", "sharpness"), SOFT[1:])
def test_gradcheck_of_the_matrix(kernel, sharpness, symmetric, normalize):
    image = patches(2, 4, 5, dtype=torch.float64).requires_grad_()
    mask = patches(2, 4, 5, seed=3) > -0.7
    assert torch.autograd.gradcheck(
        lambda x: cooccurrence_matrix(
            x,
            levels=4,
            value_range=RANGE,
            offsets=[[0, 1], [-1, 1]],
            kernel=kernel,
            sharpness=sharpness,
            symmetric=symmetric,
            normalize=normalize,
            mask=mask,
        ),
        (image,),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("reweight", "cumulative"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("kernel", "sharpness"), SOFT[1:])
def test_gradcheck_of_the_loss(kernel, sharpness, symmetric, normalize, reweight, cumulative, backend):
    pred, target = patches(2, 5, 4, dtype=torch.float64).requires_grad_(), patches(2, 5, 4, seed=1).double()
    assert torch.autograd.gradcheck(
        lambda x: (
            100
            * glcm_loss(
                x,
                target,
                levels=4,
                value_range=RANGE,
                offsets=[[1, 0], [1, -1]],
                kernel=kernel,
                sharpness=sharpness,
                reweight=reweight,
                symmetric=symmetric,
                normalize=normalize,
                cumulative=cumulative,
                reduction="none",
                backend=backend,
            )
        ),
        (pred,),
    )


# Loss

LOSS = {"levels": 8, "value_range": RANGE, "offsets": [[0, 1], [1, 0]]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("reweight", "cumulative"), [(False, False), (True, False), (False, True)])
def test_loss_by_hand(reweight, cumulative, normalize, symmetric, backend):
    pred, target = patches(3, 6, 7).double(), patches(3, 6, 7, seed=1).double()
    flags = {"normalize": normalize, "symmetric": symmetric, "kernel": "linear", "backend": backend}
    flags["cumulative"] = cumulative
    expected = []
    for one_pred, one_target in zip(pred, target, strict=True):
        cells = []
        for offset in LOSS["offsets"]:
            both = []
            for image in (one_pred, one_target):
                weights = soft_assignment(image, levels=8, value_range=RANGE, kernel="linear").numpy()
                counts = count_pairs(weights, offset)
                if symmetric:
                    counts = counts + counts.T
                if normalize:
                    counts = counts / counts.sum()
                if reweight:
                    counts = counts * (counts.sum() - counts) / counts.sum()
                if cumulative:
                    counts = np.array([[counts[: i + 1, : j + 1].sum() for j in range(8)] for i in range(8)])
                both.append(counts)
            cells.append((both[0] - both[1]) ** 2)
        expected.append(np.mean(cells))
    found = glcm_loss(pred, target, reweight=reweight, reduction="none", **flags, **LOSS)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    mean = glcm_loss(pred, target, reweight=reweight, **flags, **LOSS)
    assert mean.item() == pytest.approx(np.mean(expected))


def test_loss_is_zero_for_equal_patches_and_invariant_to_where_texture_lies():
    target = patches(4, 8, 8)
    assert glcm_loss(target, target, **LOSS).item() == 0
    # Turned by half a turn, a symmetric matrix stays as it is.
    turned = target.flip(1, 2)
    assert glcm_loss(turned, target, symmetric=True, **LOSS).item() == pytest.approx(0, abs=1e-9)


def test_loss_of_a_batch_is_a_loop():
    pred, target = patches(5, 8, 6), patches(5, 8, 6, seed=1)
    together = glcm_loss(pred, target, reduction="none", **LOSS)
    assert together.shape == (5,)
    for i in range(5):
        torch.testing.assert_close(together[i], glcm_loss(pred[i : i + 1], target[i : i + 1], **LOSS))


def check_against_the_definition(
    backend: str, pred: torch.Tensor, target: torch.Tensor, tolerance: float, **arguments
) -> None:
    """Losses of the patches and a weighted sum of their gradients, relative in norm, in the dtype of `pred`."""
    if arguments["kernel"] == "sigmoid":
        # The definition misses this part of the weight of a pixel; the other backends take it to be 1.
        tolerance += 10 * math.exp(-arguments["levels"] * arguments["sharpness"])
    pred = pred.detach().requires_grad_()
    weights = torch.arange(1, len(pred) + 1, dtype=pred.dtype, device=pred.device)
    losses = [glcm_loss(pred, target, reduction="none", backend=name, **arguments) for name in ("dense", backend)]
    assert losses[1].dtype == losses[0].dtype
    assert losses[0].norm() > 0
    assert (losses[1] - losses[0]).norm() <= tolerance * losses[0].norm()
    if arguments["kernel"] != "hard":
        expected, found = (torch.autograd.grad((weights * loss).sum(), pred)[0] for loss in losses)
        assert expected.norm() > 0
        assert (found - expected).norm() <= tolerance * expected.norm()


def draw(rng: np.random.Generator, sharpnesses: list[float], dtype: torch.dtype, patches_at_once: int = 5):
    """Patches and arguments from all over what the loss is used with."""
    height, width = rng.choice([8, 14, 16, 32], 2) if rng.random() < 0.4 else [rng.choice([8, 14, 16, 32])] * 2
    kernel = str(rng.choice(["sigmoid", "linear", "hard"], p=[0.6, 0.3, 0.1]))
    steps = [[dy, dx] for dy in range(-3, 4) for dx in range(-3, 4) if dy == 0 or dx == 0 or abs(dy) == abs(dx)]
    steps.remove([0, 0])
    offsets = [steps[i] for i in rng.choice(len(steps), rng.integers(1, 4), replace=False)]
    low, high = sorted(rng.normal(size=2))
    flags = ("reweight", "symmetric", "normalize")
    arguments = {name: bool(rng.integers(2)) for name in flags} | {
        "levels": int(rng.choice([8, 16, 32, 64, 256])),
        "kernel": kernel,
        "sharpness": float(rng.choice(sharpnesses)),
        "offsets": offsets,
        "value_range": (low, high),
    }
    # From a third of the range to values beyond both of its ends. (Of flatter patches with wide kernels, the matrices
    # hardly differ, and float32 leaves fewer digits of their difference, in the definition too.)
    spread = torch.from_numpy(10 ** rng.uniform(-0.5, 0.2, patches_at_once))[:, None, None] * (high - low)
    images = torch.from_numpy(rng.normal(size=(2, patches_at_once, height, width))) * spread / 2 + (low + high) / 2
    arguments["cumulative"] = not arguments["reweight"] and arguments["levels"] <= 64 and rng.random() < 0.4
    return *images.to(dtype), arguments


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("seed", range(100))
def test_backend_is_the_definition(seed, dtype, tolerance, backend, threads):
    threads(1 + seed % 2)  # decides how many patches are taken at once
    pred, target, arguments = draw(np.random.default_rng(seed), [2.5, 5.0, 30.0, 100.0], dtype)
    check_against_the_definition(backend, pred, target, tolerance, **arguments)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("cumulative", [False, True])
def test_backend_is_the_definition_of_a_whole_image(cumulative, backend):
    # Against float64: the definition, too, loses digits in its float32 sums.
    pred, target = 0.7 * patches(1, 512, 512), 0.7 * patches(1, 512, 512, seed=1)
    found = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "dense")):
        own = pred.to(dtype).requires_grad_()
        loss = glcm_loss(
            own, target.to(dtype), kernel="linear", reweight=False, cumulative=cumulative, backend=name, **LOSS
        )
        found.append((loss.detach(), torch.autograd.grad(loss, own)[0]))
    for one, expected in zip(*found, strict=True):
        assert (one - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("kernel", ["sigmoid", "linear", "hard"])
@pytest.mark.parametrize("levels", [2, 3])
def test_backend_with_fewer_levels_than_its_window(levels, kernel, backend):
    pred, target = 1.3 * patches(6, 7, 9), 1.3 * patches(6, 7, 9, seed=1)
    arguments = {"levels": levels, "value_range": RANGE, "offsets": [[0, 1], [-2, 3], [6, -8]], "kernel": kernel}
    check_against_the_definition(backend, pred, target, 1e-4, sharpness=5.0, **arguments)


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("levels", [8, 64])  # whole matrices, and touched cells only
def test_what_the_scratch_holds_reaches_no_patch(levels, reweight, monkeypatch):
    arguments = LOSS | {"levels": levels, "reweight": reweight, "kernel": "linear"}
    pred, target = patches(7, 8, 8), patches(7, 8, 8, seed=1)
    monkeypatch.setattr(glcm_sparse, "CELLS_AT_ONCE", 2 * levels**2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # two patches at a time
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(1, dtype=torch.complex64).isnan()
        check_against_the_definition("sparse", pred, target, 1e-5, sharpness=30.0, **arguments)
        pred[2, 4, 4] = pred[5, 0, 0] = math.nan
        pred.requires_grad_()
        losses = glcm_loss(pred, target, backend="sparse", reduction="none", **arguments)
        (gradient,) = torch.autograd.grad(losses.sum(), pred)
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses.isnan().nonzero().flatten().tolist() == [2, 5]
    assert gradient.isnan().any((1, 2)).nonzero().flatten().tolist() == [2, 5]


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_gradient_of_patches_with_other_strides(backend):
    pred, target = patches(3, 8, 6), patches(3, 8, 6, seed=1)
    transposed = pred.mT.contiguous().mT
    gradients = []
    for images in (pred, transposed):
        images.requires_grad_()
        loss = glcm_loss(images, target, backend=backend, **LOSS)
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert torch.equal(*gradients)
    # As the operator's stand-in says: compiled code checks the strides.
    assert not transposed.is_contiguous() and gradients[1].is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_gradient_cannot_be_differentiated_again(backend):
    # Its derivative was never computed; a zero in its place would be a wrong answer.
    pred, target = patches(2, 8, 8).requires_grad_(), patches(2, 8, 8, seed=1)
    with pytest.raises(RuntimeError, match='create_graph=True.*backend="dense"'):
        torch.autograd.grad(glcm_loss(pred, target, backend=backend, **LOSS), pred, create_graph=True)
    torch.autograd.grad(glcm_loss(pred, target, backend="dense", **LOSS), pred, create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["sigmoid", "linear"])
def test_a_pixel_that_is_not_a_number_shows(kernel, backend):
    # A loss that hides it would let a broken training go on.
    pred, target = patches(3, 8, 8), patches(3, 8, 8, seed=1)
    pred[1, 4, 4] = math.nan
    losses = glcm_loss(pred, target, kernel=kernel, backend=backend, reduction="none", **LOSS)
    assert losses.isnan().tolist() == [False, True, False]


def test_module_is_the_function():
    pred, target = patches(3, 8, 8), patches(3, 8, 8, seed=1)
    module = GLCMLoss(kernel="linear", **LOSS)
    torch.testing.assert_close(module(pred, target), glcm_loss(pred, target, kernel="linear", **LOSS))
    assert "kernel='linear'" in repr(module) and "levels=8" in repr(module)


@pytest.mark.parametrize(("reweight", "cumulative"), [(False, False), (True, False), (False, True)])
def test_a_masked_loss_is_that_of_what_the_mask_leaves(reweight, cumulative):
    settings = LOSS | {"kernel": "linear", "reweight": reweight, "cumulative": cumulative, "reduction": "none"}
    pred, target = patches(3, 9, 8), patches(3, 9, 8, seed=1)
    mask = torch.zeros(3, 9, 8, dtype=torch.bool)
    mask[:, 2:7, 1:6] = True
    pred[0, 0, 0], target[0, 8, 7] = math.nan, math.inf  # whatever lies outside
    loss = GLCMLoss(**settings)(pred.requires_grad_(), target, mask)
    cut = glcm_loss(pred[:, 2:7, 1:6], target[:, 2:7, 1:6], **settings)
    torch.testing.assert_close(loss, cut)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert gradient[mask].any() and not gradient[~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_flows_to_the_target(backend):
    pred, target = patches(2, 8, 8).requires_grad_(), patches(2, 8, 8, seed=1).requires_grad_()
    glcm_loss(pred, target, kernel="linear", backend=backend, **LOSS).backward()
    assert target.grad is None and pred.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", ["sigmoid", "linear"])
@pytest.mark.parametrize("case", ["flat", "flat pred", "below", "above", "one bin", "edges", "none"])
def test_degenerate_patches_give_a_finite_loss_and_gradient(case, kernel, normalize, reweight, backend):
    noise = patches(3, 8, 8)
    pred, target = {
        "flat": (torch.full_like(noise, 0.3), torch.full_like(noise, 0.3)),
        "flat pred": (torch.zeros_like(noise), noise),
        "below": (noise - 1e4, noise - 1e4),
        "above": (noise + 1e4, noise),
        "one bin": (0.01 + 0.001 * noise, noise),
        "edges": (noise.sign(), noise),
        "none": (noise[:0], noise[:0]),
    }[case]
    pred = pred.clone().requires_grad_()
    loss = glcm_loss(pred, target, kernel=kernel, normalize=normalize, reweight=reweight, backend=backend, **LOSS)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and pred.grad.isfinite().all()
    if case in ("flat", "below", "none"):
        # Where one matrix holds the difference, what was added is taken away again in float32.
        assert 0 <= loss.item() < 1e-12
    if case in ("below", "above"):
        assert pred.grad.abs().max() == 0  # clamped


@pytest.mark.parametrize("backend", BACKENDS)
def test_reduction_none_of_no_patch(backend):
    none = patches(0, 8, 8)
    assert glcm_loss(none, none, reduction="none", backend=backend, **LOSS).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype, backend):
    pred, target = patches(4, 16, 16).requires_grad_(), patches(4, 16, 16, seed=1)
    channels = pred.unsqueeze(1), target.unsqueeze(1)

    def results() -> list[torch.Tensor]:
        return [
            glcm_loss(pred, target, backend=backend, **LOSS),
            ssim_loss(*channels),
            cooccurrence_matrix(pred, **LOSS),
        ]

    plain = results()
    with torch.autocast("cpu", dtype=dtype):
        assert (torch.eye(2) @ torch.eye(2)).dtype == dtype  # autocast is really on
        cast = results()
    for one, other in zip(plain, cast, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)
    # As trainers do, the gradient is asked for outside autocast.
    for one, other in zip(plain[:2], cast[:2], strict=True):
        assert torch.equal(torch.autograd.grad(one, pred)[0], torch.autograd.grad(other, pred)[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": 1}, "levels.*at least 2.*1"),
        ({"value_range": (1.0, 0.0)}, r"value_range.*lo < hi.*\(1.0, 0.0\)"),
        ({"value_range": (0.0, math.inf)}, "value_range.*finite"),
        ({"value_range": (0.0, 1.0, 2.0)}, "value_range.*two"),
        ({"offsets": []}, "offsets.*none"),
        ({"offsets": [[0, 0]]}, r"offset.*\[0, 0\]"),
        ({"offsets": [[8, 0]]}, r"offset.*8 x 8.*\[8, 0\]"),
        ({"offsets": [[0, -8]]}, r"offset.*8 x 8.*\[0, -8\]"),
        ({"offsets": [[1]]}, r"offset.*\[1\]"),
        ({"kernel": "box"}, "kernel.*sigmoid, linear, hard.*'box'"),
        ({"sharpness": 0.0}, "sharpness.*0"),
        ({"sharpness": math.nan}, "sharpness.*nan"),
        ({"sharpness": math.inf}, "sharpness.*inf"),
        ({"reduction": "sum"}, "reduction.*mean or none.*'sum'"),
        ({"backend": "cuda"}, "backend.*dense.*'cuda'"),
        ({"cumulative": True}, "cumulative=True.*reweight=True"),  # reweight is the default
    ],
)
def test_wrong_argument_names_itself_and_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        glcm_loss(patches(2, 8, 8), patches(2, 8, 8), **(LOSS | arguments))


@pytest.mark.parametrize("backend", [*BACKENDS, "triton", "auto"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_every_backend_refuses_what_is_not_floating_point(dtype, backend):
    whole, real = torch.ones(2, 8, 8, dtype=dtype), patches(2, 8, 8)
    for pred, target in ((whole, whole), (real, whole), (whole, real)):
        name, wrong = ("target", target) if pred is real else ("pred", pred)
        said = rf"{name} must be floating point \(M, H, W\), got {wrong.dtype} of shape"
        with pytest.raises(ValueError, match=said):
            glcm_loss(pred, target, backend=backend, **LOSS)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) and \(2, 8, 7\)"):
        glcm_loss(patches(2, 8, 8), patches(2, 8, 7), **LOSS)
    with pytest.raises(ValueError, match=r"\(M, H, W\)"):
        glcm_loss(patches(8, 8), patches(8, 8), **LOSS)
    with pytest.raises(ValueError, match="floating point.*int64"):
        cooccurrence_matrix(torch.zeros(8, 8, dtype=torch.int64), **LOSS)
    with pytest.raises(ValueError, match="mask.*bool"):
        cooccurrence_matrix(patches(8, 8), mask=torch.ones(8, 8), **LOSS)
    with pytest.raises(ValueError, match=r"mask.*\(8, 8\)"):
        cooccurrence_matrix(patches(8, 8), mask=torch.ones(8, 7, dtype=torch.bool), **LOSS)


# SSIM


# Does it do what it is for?


def test_moving_pixels_down_the_loss_restores_texture():
    # Correlated noise; its blurred copy has lost the contrast between neighbours.
    target = avg_pool2d(patches(16, 18, 18), 3, stride=1)
    blurred = avg_pool2d(pad(target.unsqueeze(1), (2, 2, 2, 2), mode="replicate"), 5, stride=1).squeeze(1)
    before = texture_fidelity(blurred, target, value_range=RANGE)
    pixels = blurred.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = glcm_loss(
            pixels,
            target,
            levels=32,
            value_range=RANGE,
            offsets=[[0, 1], [1, 0]],
            kernel="linear",
            reweight=False,
            normalize=True,
        )
        (1e4 * loss).backward()
        optimizer.step()
    after = texture_fidelity(pixels.detach(), target, value_range=RANGE)
    assert before["glcm_l1"] > 1 and after["glcm_l1"] < 0.35
    assert before["gradient_energy_ratio"] < 0.4 and 0.85 < after["gradient_energy_ratio"] < 1.2
