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
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("seed", range(100))
def test_compiled_kernel_is_the_definition(seed, dtype, tolerance):
    check(seed, [2.5, 5.0, 30.0, 100.0], dtype, tolerance, patches_at_once=5)


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
assert "atom" in compiled("fp32", "fp32", "fp32", **published)
assert "atom" in compiled("fp32", "fp32", "i64", FIXED_POINT=True, **published)
assert compiled("fp32", "fp32", "fp32", SYMMETRIC=True, REWEIGHT=True)
assert compiled("bf16", "fp32", "fp32", CUMULATIVE=True, SIDE=16)
assert compiled("fp32", "fp32", "i64", CUMULATIVE=True, SIDE=64, LEVELS=50, FIXED_POINT=True)
assert compiled("fp32", "fp32", "fp64", KERNEL="sigmoid", HALF_WIDTH=9, SUPPORT=18)
assert compiled("fp64", "fp64", "fp64", KERNEL="sigmoid", HALF_WIDTH=2, SUPPORT=4)
assert compiled("fp32", "fp32", "fp32", KERNEL="hard", SUPPORT=1, WITH_GRADIENT=False)
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
