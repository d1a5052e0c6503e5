"""Tests of modeling_glcm_mae.glcm_triton: compiled where there is a CUDA device, else interpreted on the CPU."""

import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_glcm import LOSS, check_against_the_definition, draw, patches

from modeling_glcm_mae import glcm_loss

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def deterministic():
    """Equal bits from run to run: the kernel counts in fixed point."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(seed: int, sharpnesses: list[float], dtype: torch.dtype, tolerance: float, patches_at_once: int) -> None:
    pred, target, arguments = draw(np.random.default_rng(seed), sharpnesses, dtype, patches_at_once)
    check_against_the_definition("triton", pred.to(DEVICE), target.to(DEVICE), tolerance, **arguments)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("seed", range(12))
def test_kernel_is_the_definition(seed, dtype, tolerance):
    # The interpreter takes seconds a patch where many levels share a pixel.
    check(seed, [100.0] if dtype == torch.float64 else [30.0, 100.0], dtype, tolerance, patches_at_once=2)


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [2.5, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_kernel_is_the_definition_for_wide_supports(seed, sharpness):
    check(100 + seed, [sharpness], torch.float32, 1e-5, patches_at_once=1)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(100))
def test_compiled_kernel_is_the_definition(seed):
    check(seed, [2.5, 5.0, 30.0, 100.0], torch.float64, 1e-9, patches_at_once=5)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(100))
def test_compiled_kernel_is_as_exact_as_the_definition(seed):
    """In float32, where steep kernels leave three digits of a gradient whichever way it is rounded.

    A compiled kernel fuses products with sums, PyTorch does not: they differ by as much as each is off.
    """
    drawn = draw(np.random.default_rng(seed), [2.5, 5.0, 30.0, 100.0], torch.float32, 5)
    (pred, target), arguments = (part.to(DEVICE) for part in drawn[:2]), drawn[2]

    def answers(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        own = pred.to(dtype).requires_grad_()
        losses = glcm_loss(own, target.to(dtype), backend=backend, reduction="none", **arguments)
        weights = torch.arange(1, len(own) + 1, dtype=dtype, device=DEVICE)
        gradient = [] if arguments["kernel"] == "hard" else torch.autograd.grad((weights * losses).sum(), own)
        return [part.detach().double() for part in (losses, *gradient)]

    exact = answers("dense", torch.float64)
    defined, found = answers("dense", torch.float32), answers("triton", torch.float32)
    # The definition misses this part of the weight of a pixel; the kernel takes it to be 1.
    missed = 10 * math.exp(-arguments["levels"] * arguments["sharpness"]) if arguments["kernel"] == "sigmoid" else 0
    for truth, of_definition, of_kernel in zip(exact, defined, found, strict=True):
        allowed = (1e-5 + missed) * truth.norm() + 4 * (of_definition - truth).norm()
        assert (of_kernel - truth).norm() <= allowed


@pytest.mark.parametrize("kernel", ["sigmoid", "linear"])
def test_fixed_point_is_the_definition(kernel, deterministic):
    pred, target = patches(3, 8, 8).to(DEVICE), patches(3, 8, 8, seed=1).to(DEVICE)
    for flags in ({"reweight": True}, {"reweight": False}, {"reweight": False, "cumulative": True}):
        check_against_the_definition("triton", pred, target, 1e-5, kernel=kernel, sharpness=30.0, **flags, **LOSS)


@pytest.mark.gpu
def test_deterministic_algorithms_give_equal_bits(deterministic):
    pred, target = patches(4000, 16, 16).cuda().requires_grad_(), patches(4000, 16, 16, seed=1).cuda()
    results = []
    for _ in range(5):
        losses = glcm_loss(pred, target, kernel="linear", reduction="none", backend="triton", **LOSS)
        results.append((losses, *torch.autograd.grad(losses.sum(), pred)))
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.slow
def test_one_program_takes_many_patches(monkeypatch):
    from modeling_glcm_mae import glcm_triton

    # Tables for a single program: what a patch has counted must be cleared before the next.
    monkeypatch.setattr(glcm_triton, "SCRATCH_BYTES", 1)
    for flags in ({}, {"symmetric": True}, {"reweight": False, "cumulative": True}):
        check_against_the_definition(
            "triton",
            patches(4, 8, 6).to(DEVICE),
            patches(4, 8, 6, seed=1).to(DEVICE),
            1e-5,
            kernel="linear",
            **flags,
            **LOSS,
        )


def test_too_many_levels_to_accumulate_are_refused():
    arguments = LOSS | {"levels": 65, "reweight": False, "cumulative": True}
    pred, target = patches(1, 8, 8).to(DEVICE), patches(1, 8, 8, seed=1).to(DEVICE)
    with pytest.raises(ValueError, match="levels.*at most 64.*65"):
        glcm_loss(pred, target, backend="triton", **arguments)
    assert glcm_loss(pred, target, **arguments) > 0  # another backend is taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_nothing_is_computed_in_it(dtype):
    pred, target = patches(2, 8, 8).to(DEVICE, dtype).requires_grad_(), patches(2, 8, 8, seed=1).to(DEVICE)
    # 1e3: gradients of a mean over cells are small for float16.
    loss = 1e3 * glcm_loss(pred, target, kernel="linear", backend="triton", **LOSS)
    wide = pred.detach().float().requires_grad_()
    expected = 1e3 * glcm_loss(wide, target, kernel="linear", backend="sparse", **LOSS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    (gradient,), (wide_gradient,) = torch.autograd.grad(loss, pred), torch.autograd.grad(expected, wide)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wide_gradient.to(dtype), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("case", ["flat", "below", "edges", "none"])
def test_degenerate_patches_give_a_finite_loss_and_gradient(case):
    noise = patches(2, 8, 8).to(DEVICE)
    pred, target = {
        "flat": (torch.full_like(noise, 0.3), torch.full_like(noise, 0.3)),
        "below": (noise - 1e4, noise - 1e4),
        "edges": (noise.sign(), noise),
        "none": (noise[:0], noise[:0]),
    }[case]
    for kernel in ("sigmoid", "linear"):
        pred = pred.detach().clone().requires_grad_()
        loss = glcm_loss(pred, target, kernel=kernel, backend="triton", **LOSS)
        loss.backward()
        assert loss.isfinite() and pred.grad.isfinite().all()
        assert (loss.item() == 0) == (case != "edges")


def test_a_pixel_that_is_not_a_number_shows(deterministic):
    pred, target = patches(3, 8, 8).to(DEVICE), patches(3, 8, 8, seed=1).to(DEVICE)
    pred[1, 4, 4] = math.nan
    for kernel in ("sigmoid", "linear"):
        losses = glcm_loss(pred, target, kernel=kernel, backend="triton", reduction="none", **LOSS)
        assert losses.isnan().tolist() == [False, True, False]


def run_python(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from modeling_glcm_mae.glcm_triton import _loss_kernel

PLAIN = dict(
    HEIGHT=16, WIDTH=16, LEVELS=16, KERNEL="linear", HALF_WIDTH=0, SUPPORT=2, OFFSETS=2, REWEIGHT=False,
    SYMMETRIC=False, NORMALIZE=True, CUMULATIVE=False, SIDE=1, WITH_GRADIENT=True, FIXED_POINT=False,
    FRACTION=2.0**40, BLOCK=256,
)

def compiled(pred, inside, tables, **changed):
    constants = PLAIN | changed
    types = dict(
        pred=pred, target=pred, settings=inside, offsets="i32", tables=tables, losses=inside, gradient=inside
    )
    signature = {{name: "*" + kind for name, kind in types.items()}} | {{"patches": "i32"}}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {{(_loss_kernel.arg_names.index(name),): value for name, value in constants.items()}}
    source = ASTSource(fn=_loss_kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

published = dict(KERNEL="sigmoid", LEVELS=256, HALF_WIDTH=1, REWEIGHT=True, NORMALIZE=False)
for pred in ("fp32", "bf16", "fp16"):
    assert ".target sm_90" in compiled(pred, "fp32", "fp32")
# The quick division, div.full, is a digit off: gradients of 256 levels were by 0.1 %, on an H100.
assert "div.rn.f32" in compiled("fp32", "fp32", "fp32", **published)
for tables, changed in (("fp32", {{}}), ("i64", {{"FIXED_POINT": True}})):
    ptx = compiled("fp32", "fp32", tables, **published, **changed)
    assert "relaxed" in ptx and "acq_rel" not in ptx  # of the additions to the tables
assert compiled("fp32", "fp32", "fp32", SYMMETRIC=True, REWEIGHT=True)
assert compiled("bf16", "fp32", "fp32", CUMULATIVE=True, SIDE=16)
assert compiled("fp32", "fp32", "i64", CUMULATIVE=True, SIDE=64, LEVELS=50, FIXED_POINT=True)
assert compiled("fp32", "fp32", "fp64", KERNEL="sigmoid", HALF_WIDTH=9, SUPPORT=18)
assert compiled("fp64", "fp64", "fp64", KERNEL="sigmoid", HALF_WIDTH=2, SUPPORT=4)
assert compiled("fp32", "fp32", "fp32", KERNEL="hard", SUPPORT=1, WITH_GRADIENT=False)

from modeling_glcm_mae.glcm_head_triton import _pairs_kernel
for size, levels, side in ((16, 8, 16), (32, 12, 16), (16, 32, 32)):
    constants = dict(HEIGHT=size, WIDTH=size, LEVELS=levels, OFFSETS=4, SIDE=side, BLOCK=32)
    signature = dict(image="*fp32", settings="*fp32", offsets="*i32", found="*fp32")
    signature |= dict.fromkeys(constants, "constexpr")
    places = {{(_pairs_kernel.arg_names.index(name),): value for name, value in constants.items()}}
    source = ASTSource(fn=_pairs_kernel, signature=signature, constexprs=places)
    assert "div.rn.f32" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.mark.slow
def test_kernel_compiles_for_hopper(tmp_path):
    # Compiling needs no device, and refuses what the interpreter lets pass.
    run_python(COMPILE.format(), TRITON_CACHE_DIR=str(tmp_path))


CALL = """
import sys, torch
{before}
from modeling_glcm_mae import glcm_loss
arguments = dict(levels=8, value_range=(0, 1), offsets=[[0, 1]])
print(glcm_loss(torch.rand(2, 8, 8), torch.rand(2, 8, 8), **arguments).item() > 0)
try:
    glcm_loss(torch.rand(2, 8, 8), torch.rand(2, 8, 8), backend="triton", **arguments)
except {error} as error:
    print(error)
"""


def test_tensors_on_the_cpu_are_refused():
    printed = run_python(CALL.format(before="", error="ValueError"))
    assert printed.startswith("True\n") and 'backend "triton" needs tensors on a CUDA device, got cpu' in printed


def test_package_works_without_triton():
    printed = run_python(CALL.format(before="sys.modules['triton'] = None", error="ImportError"))
    assert printed.startswith("True\n") and "needs the package triton" in printed


# ----------------------------------------------------------------------------------------- targets of the texture head


@pytest.mark.parametrize(
    ("shape", "levels"), [((16, 16), 8), ((8, 14), 6), ((14, 8), 20), ((32, 32), 32), ((56, 56), 8)]
)
def test_targets_of_the_head_are_those_of_pytorch(shape, levels):
    from modeling_glcm_mae.glcm_head import _pair_distribution_in_torch
    from modeling_glcm_mae.glcm_head_triton import triton_pair_distribution

    image = 1.5 * patches(3, *shape).to(DEVICE)  # beyond both ends of the range too
    setting = {"levels": levels, "value_range": (-1.0, 1.2), "offsets": [[0, 1], [1, 0], [1, 1], [1, -1], [-3, 2]]}
    found = triton_pair_distribution(image, **setting)
    torch.testing.assert_close(found, _pair_distribution_in_torch(image, **setting), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 5, device=DEVICE))
    assert triton_pair_distribution(image[:0], **setting).shape == (0, 5, levels * (levels + 1) // 2)


# ------------------------------------------------------------------------------------------------- trust in the kernels


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Let "auto" choose Triton, which is interpreted here, and forget what was checked before."""
    from modeling_glcm_mae import glcm_backends, glcm_head

    monkeypatch.setattr(glcm_backends, "_fastest_backend", lambda *given: "triton")
    monkeypatch.setattr(glcm_head, "TRITON_DEVICES", (DEVICE,))
    monkeypatch.setattr(glcm_backends, "_agreeing", set())
    monkeypatch.setattr(glcm_backends, "_disagreeing", [])
    monkeypatch.delenv("GLCM_BACKEND", raising=False)


def count_calls(monkeypatch, module, name: str, change=lambda found: found) -> list[int]:
    """How many patches each call of a function of a module was given, from now on; its answer is changed."""
    calls, function = [], getattr(module, name)

    def counted(image, *arguments, **named):
        calls.append(len(image))
        return change(function(image, *arguments, **named))

    monkeypatch.setattr(module, name, counted)
    return calls


ONE = LOSS | {"kernel": "linear"}


def loss_and_gradient(**changed):
    pred = patches(2, 8, 8).to(DEVICE).requires_grad_()
    loss = glcm_loss(pred, patches(2, 8, 8, seed=1).to(DEVICE), **ONE | changed)
    return loss.detach(), torch.autograd.grad(loss, pred)[0]


def test_a_right_kernel_is_checked_once_for_each_setting(as_on_cuda, monkeypatch, recwarn):
    from modeling_glcm_mae import glcm_triton

    calls = count_calls(monkeypatch, glcm_triton, "triton_loss_and_gradient")
    for levels in (16, 16, 32, 16):
        loss_and_gradient(levels=levels)
    assert calls == [4, 2, 2, 4, 2, 2] and not recwarn.list
    loss_and_gradient(value_range=(-1.5, 3.0), levels=16)  # not what the kernel is compiled for
    assert calls[6:] == [2]


@pytest.mark.parametrize("wrong", ["loss", "gradient", "not a number"])
def test_a_wrong_kernel_is_left_alone_with_one_warning(wrong, as_on_cuda, monkeypatch):
    from modeling_glcm_mae import glcm_triton

    def change(found):
        loss, gradient = found
        if wrong == "loss":
            return 1.05 * loss, gradient
        return loss, 0.9 * gradient if wrong == "gradient" else gradient * math.nan

    calls = count_calls(monkeypatch, glcm_triton, "triton_loss_and_gradient", change)
    with pytest.warns(UserWarning, match="Triton kernel differs from PyTorch .*GLCM_BACKEND") as caught:
        found = [loss_and_gradient() for _ in range(2)] + [loss_and_gradient(levels=32)]
    assert len(caught) == 1 and calls == [4]
    for one, expected in zip(found[1], loss_and_gradient(backend="sparse"), strict=True):
        assert torch.equal(one, expected)


def test_a_wrong_kernel_of_the_head_is_left_alone(as_on_cuda, monkeypatch):
    from modeling_glcm_mae import glcm_head, glcm_head_triton

    setting = {"levels": 8, "value_range": (-2.0, 2.0), "offsets": [[0, 1]]}
    image = patches(2, 8, 8).to(DEVICE)
    calls = count_calls(monkeypatch, glcm_head_triton, "triton_pair_distribution")
    found = glcm_head.pair_distribution(image, **setting)
    assert calls == [4, 2]
    glcm_head.pair_distribution(image.double(), **setting)  # float32 only
    assert calls == [4, 2]
    count_calls(monkeypatch, glcm_head_triton, "triton_pair_distribution", lambda pairs: pairs.flip(-1))
    with pytest.warns(UserWarning, match="texture head"):
        again = glcm_head.pair_distribution(image, **setting | {"levels": 9})
    assert again.shape == (2, 1, 45)
    torch.testing.assert_close(glcm_head.pair_distribution(image, **setting), found)


def test_triton_is_not_tried_where_sparse_is_asked_for(as_on_cuda, monkeypatch):
    from modeling_glcm_mae import glcm_head, glcm_head_triton, glcm_triton

    monkeypatch.setenv("GLCM_BACKEND", "sparse")
    calls = count_calls(monkeypatch, glcm_triton, "triton_loss_and_gradient")
    calls_of_head = count_calls(monkeypatch, glcm_head_triton, "triton_pair_distribution")
    found = loss_and_gradient()
    glcm_head.pair_distribution(patches(2, 8, 8).to(DEVICE), levels=8, value_range=(-1.0, 1.0), offsets=[[0, 1]])
    assert not calls and not calls_of_head
    for one, expected in zip(found, loss_and_gradient(backend="sparse"), strict=True):
        assert torch.equal(one, expected)
    monkeypatch.setenv("GLCM_BACKEND", "fast")
    with pytest.raises(ValueError, match="GLCM_BACKEND must be sparse or not set, got 'fast'"):
        loss_and_gradient()
