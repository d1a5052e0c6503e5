"""Tests of modeling_glcm_mae.glcm_numba beyond those that all backends share (test_glcm.py)."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from huggingface_hub.utils import WeakFileLock
from test_glcm import LOSS, patches

from modeling_glcm_mae import glcm_backends, glcm_loss, glcm_numba
from modeling_glcm_mae.glcm_numba import numba_loss_and_gradient

PAIR = patches(7, 8, 6), patches(7, 8, 6, seed=1)


def loss_and_gradient(pred: torch.Tensor, target: torch.Tensor, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
    pred = pred.detach().requires_grad_()
    losses = glcm_loss(pred, target, reduction="none", **(LOSS | arguments))
    return losses.detach(), torch.autograd.grad(losses.sum(), pred)[0]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_do_not_depend_on_the_number_of_threads(count, threads):
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(loss_and_gradient(*(stack[:count] for stack in PAIR), backend="numba"))
    for losses, gradient in found[1:]:
        assert torch.equal(losses, found[0][0]) and torch.equal(gradient, found[0][1])


def test_equal_patches_have_no_loss_at_all():
    losses, gradient = loss_and_gradient(PAIR[0], PAIR[0], backend="numba")
    assert losses.tolist() == [0] * 7 and not gradient.any()


def test_it_is_the_default_on_the_cpu():
    found, expected, other = (loss_and_gradient(*PAIR, backend=name) for name in ("auto", "numba", "sparse"))
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[1], other[1])  # which rounds in another order: the test can tell them apart


def test_half_precision_is_read_and_nothing_is_computed_in_it():
    pred, target = PAIR[0].bfloat16(), PAIR[1]
    losses, gradient = loss_and_gradient(pred, target, backend="numba")
    expected, wide = loss_and_gradient(pred.float(), target, backend="numba")
    assert torch.equal(losses, expected) and losses.dtype == torch.float32
    assert torch.equal(gradient, wide.bfloat16())


def test_tensors_elsewhere_are_refused():
    arguments = LOSS | {"kernel": "linear", "sharpness": 30.0, "reweight": True, "cumulative": False}
    meta = PAIR[0].to("meta")
    with pytest.raises(ValueError, match='backend "numba" needs tensors on the CPU, got meta'):
        numba_loss_and_gradient(meta, meta, True, symmetric=False, normalize=False, **arguments)


CALL = """
import os, sys, warnings
{before}
import torch
from modeling_glcm_mae import glcm_backends, glcm_loss
pred, target = torch.rand(4, 8, 8), torch.rand(4, 8, 8)

def loss(backend):
    return glcm_loss(pred, target, levels=8, value_range=(0, 1), offsets=[[0, 1]], backend=backend).item()

{code}
"""


def run_python(code: str, before: str = "", **environment: str) -> subprocess.CompletedProcess:
    script = CALL.format(before=before, code=code)
    return subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_package_works_without_numba():
    code = """
print(loss("auto") == loss("sparse"))
try:
    loss("numba")
except ImportError as error:
    print(error)
"""
    done = run_python(code, before="sys.modules['numba'] = None")
    assert done.stdout.startswith("True\n") and 'backend "numba" needs the package numba' in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_numba_that_cannot_be_imported_is_said_once(error, tmp_path):
    (tmp_path / "numba.py").write_text(f"raise {error}('Numba needs NumPy 1.0 or less')\n")
    done = run_python("print(loss('auto') == loss('sparse'), loss('auto') > 0)", PYTHONPATH=str(tmp_path))
    assert done.stdout == "True True\n", done.stderr
    said = f"will be slower: numba cannot be imported: {error}('Numba needs NumPy 1.0 or less')"
    assert done.stderr.count(said) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own():
    # As a DataLoader's workers do. Threads of the parent would never answer.
    code = """
torch.set_num_threads(2)
expected = loss("numba")
child = os.fork()
if child == 0:
    os._exit(0 if loss("numba") == expected else 1)
print(os.waitpid(child, 0)[1], loss("numba") == expected)
"""
    done = run_python(code)
    assert done.stdout == "0 True\n", done.stderr


@pytest.mark.slow
def test_where_nothing_can_be_kept_it_is_compiled_again():
    # A read-only installation and no home folder, as in many containers: Numba then refuses cache=True.
    before = """
import numba.core.caching
numba.core.caching.CacheImpl._locator_classes = []
"""
    code = """
import numba
try:
    numba.njit(cache=True)(lambda x: x)
except RuntimeError:
    print(loss("numba") > 0)
"""
    done = run_python(code, before=before)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
def test_what_was_compiled_is_kept(tmp_path):
    kept = []
    for _ in range(2):
        done = run_python("print(loss('numba') > 0)", NUMBA_CACHE_DIR=str(tmp_path))
        assert done.stdout == "True\n" and not done.stderr, done.stderr
        kept.append({file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")})
    assert len(kept[0]) == 2 and kept[1] == kept[0]  # an index and the code: read, not made again


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full disk", "half a file"])
def test_what_cannot_be_kept_or_read_is_compiled_again(fault, tmp_path):
    before = ""
    if fault == "full disk":
        before = (
            "import resource, signal, modeling_glcm_mae.glcm_numba\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        )
        before += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    else:
        run_python("loss('numba')", NUMBA_CACHE_DIR=str(tmp_path))
        (code,) = tmp_path.rglob("*.nbc")
        code.write_bytes(code.read_bytes()[:100])
    script = "torch.set_num_threads(2)\nprint(abs(loss('numba') / loss('sparse') - 1) < 1e-5)"
    done = run_python(script, before=before, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "True\n", done.stderr
    assert done.stderr.count("Numba cannot keep what it compiled") == 1, done.stderr
    if fault == "half a file":  # and it is whole again
        done = run_python(script, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.stdout == "True\n" and not done.stderr


@pytest.mark.slow
def test_two_processes_that_compile_at_once_keep_both(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    scripts = [CALL.format(before="", code="loss('numba')")]
    scripts.append(scripts[0].replace("rand(4, 8, 8)", "rand(4, 8, 8).double()"))
    for process in [subprocess.Popen([sys.executable, "-c", script], env=environment) for script in scripts]:
        assert process.wait(timeout=240) == 0
    code = """
loss("numba")
pred, target = pred.double(), target.double()
loss("numba")
from modeling_glcm_mae.glcm_numba import _kept
print(sum(_kept.stats.cache_hits.values()), sum(_kept.stats.cache_misses.values()))
"""
    done = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "2 0\n" and not done.stderr, done.stderr


def _compare_patches(x):
    """In place of the loss, which takes long to compile."""
    x += 1


@pytest.fixture
def process(tmp_path, monkeypatch) -> Callable[[], None]:
    """`process()` begins as a new process would, with a folder `tmp_path` that others have used."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def begin() -> None:
        monkeypatch.setattr(glcm_numba, "_kept", numba.njit(cache=True)(_compare_patches))
        monkeypatch.setattr(glcm_numba, "_not_kept", numba.njit(_compare_patches))

    begin()
    return begin


def compiled(*dtypes: type) -> tuple[int, int]:
    """Compile for arrays of these types and see that each works: how many were read, and compiled anew."""
    for dtype in dtypes:
        numbers = np.zeros(3, dtype)
        glcm_numba._compile((numbers,))(numbers)
        assert numbers.tolist() == [1, 1, 1]
    stats = glcm_numba._kept.stats
    return sum(stats.cache_hits.values()), sum(stats.cache_misses.values())


def kept_files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{ending}"))


@pytest.mark.parametrize(
    ("ending", "content"),
    [("nbi", b""), ("nbi", None), ("nbc", b""), ("nbc", None), ("nbc", b"nothing"), ("nbc", pickle.dumps(5))],
)
def test_a_damaged_file_is_made_anew(ending, content, process, tmp_path):
    assert compiled(np.float32) == (0, 1)
    (file,) = kept_files(tmp_path, ending)
    file.write_bytes(file.read_bytes()[:100] if content is None else content)
    process()
    with pytest.warns(UserWarning, match=f"Numba cannot keep what it compiled in {tmp_path}.*, or read") as said:
        compiled(np.float32)
    assert len(said) == 1
    process()
    assert compiled(np.float32) == (1, 0)


def test_code_of_other_types_is_made_anew(process, tmp_path):
    # What two processes can leave that write without a lock.
    assert compiled(np.float32, np.float64) == (0, 2)
    first, second = kept_files(tmp_path, "nbc")
    second.write_bytes(first.read_bytes())
    process()
    with pytest.warns(UserWarning, match="the code of other types"):
        compiled(np.float32, np.float64)
    process()
    compiled(np.float32, np.float64)
    process()
    assert compiled(np.float32, np.float64) == (2, 0)


def test_one_process_at_a_time_reads_or_compiles(process, tmp_path, monkeypatch):
    (folder,) = tmp_path.iterdir()
    begun, compile_kept = threading.Event(), glcm_numba._kept.compile
    monkeypatch.setattr(glcm_numba._kept, "compile", lambda types: (begun.set(), compile_kept(types))[1])
    other = threading.Thread(target=compiled, args=[np.float32])
    with WeakFileLock(folder / "glcm_numba.lock"):
        other.start()
        assert not begun.wait(1)
    other.join(60)
    assert begun.is_set() and not other.is_alive() and len(kept_files(tmp_path, "nb?")) == 2


def test_where_no_lock_is_to_be_had_it_is_compiled_and_not_kept(process, tmp_path, monkeypatch):
    monkeypatch.setattr(glcm_numba, "LOCK_SECONDS", 0.1)
    (folder,) = tmp_path.iterdir()
    with WeakFileLock(folder / "glcm_numba.lock"), pytest.warns(UserWarning, match="glcm_numba.lock"):
        compiled(np.float32)
    assert not kept_files(tmp_path, "nb?")


def test_a_thread_that_outlives_the_main_one_gets_its_loss():
    # Pools of Python's take no work then.
    code = """
import threading
torch.set_num_threads(2)

def train():
    threading.main_thread().join()
    print(loss("numba") > 0, flush=True)

threading.Thread(target=train).start()
"""
    done = run_python(code)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("backend", ["sparse", "numba"])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_operator_is_what_compiled_code_takes_it_for(with_gradient, backend):
    settings = [8, [-1.0, 1.0], [0, 1, 1, 0], "linear", 30.0, True, False, False, False]
    torch.library.opcheck(glcm_backends._loss_and_gradient, (*PAIR, with_gradient, backend, *settings))
