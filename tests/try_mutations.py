"""Edits that break the code on purpose, each with the tests that must notice: `make mutations` tries them all.

Each edit is made in a copy of the working tree, where the tests named beside it are run: at least one must fail. Before
that, the same tests must pass in a copy without any edit. `make mutations ARGS="--only statistics"` tries the edits
whose file or test contains that word.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutations import MUTATIONS
from mutations.record import Mutation
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
OURS = {ROOT, ROOT / "recipes", ROOT / "tests"}  # what an editable install and the start of this file put on the path
OUTPUT = "output_of_the_tests.txt"
SECONDS = 900  # after which the tests of one edit are stopped


def copy_tree(target: Path) -> None:
    """Copy what git tracks, and new files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a tracked file may have been deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_unedited(tree: Path, tests: Sequence[str], jobs: int) -> subprocess.CompletedProcess:
    """Run the tests in `tree`, in `jobs` processes."""
    path = os.pathsep.join([str(tree), str(tree / "recipes")])
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            str(jobs),
            "-p",
            "no:cacheprovider",
            "-m",
            "not gpu",
            *tests,
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def third_party_imports() -> None:
    """Import what the tests import from outside, once: a child that is forked afterwards needs no seconds for it."""
    # As tests/conftest.py has them; some are read at import.
    os.environ.update(HF_HUB_DISABLE_XET="1", TRITON_INTERPRET="1", OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    for name in (
        *("accelerate", "aiohttp.web", "datasets", "huggingface_hub", "jinja2", "kornia.augmentation", "numba"),
        *("pandas", "pydicom", "pytest", "scipy.stats", "skimage.metrics", "sklearn.linear_model", "sklearn.metrics"),
        *("sklearn.neighbors", "tifffile", "torch", "transformers", "yaml"),
    ):
        importlib.import_module(name)
    import torch
    import transformers

    for name in (
        "AutoImageProcessor",
        "AutoModelForImageClassification",
        "Trainer",
        "ViTMAEForPreTraining",
        "pipeline",
    ):
        getattr(transformers, name)  # which are imported at their first use
    torch.set_num_threads(1)  # a process with threads cannot be forked


def start_tests(tree: Path, tests: Sequence[str]) -> int:
    """Run the tests in `tree`, on its code and not on the code that is installed; returns the child's process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()  # so that what it launches can be ended with it
    output = os.open(tree / OUTPUT, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    ours = [str(tree), str(tree / "recipes")]
    sys.path[:] = ours + [place for place in sys.path if Path(place or ".").resolve() not in OURS]
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)
    import pytest

    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *tests]))


class Attempt:
    """One edit, made in a copy of the tree in which its tests run."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self._folder = tempfile.TemporaryDirectory()
        self._tree = Path(self._folder.name)
        copy_tree(self._tree)
        file = self._tree / mutation.file
        source = file.read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            sys.exit(f"{mutation.file}: {mutation.old!r} stands there {source.count(mutation.old)} times")
        file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
        self._child = start_tests(self._tree, mutation.tests.split())
        self._end = time.monotonic() + SECONDS

    def ended(self) -> bool:
        """Whether its tests have ended; they are stopped when their time is over."""
        child, status = os.waitpid(self._child, os.WNOHANG)
        if not child and time.monotonic() > self._end:
            os.killpg(self._child, signal.SIGKILL)
            child, status = os.waitpid(self._child, 0)
        if not child:
            return False
        self._status = os.waitstatus_to_exitcode(status)
        return True

    def problem(self) -> str | None:
        """`None` if a test noticed the edit, else what went wrong; removes the copy."""
        text = (self._tree / OUTPUT).read_text(encoding="utf-8", errors="replace")
        self._folder.cleanup()
        if self._status == 1:  # pytest's exit status for failed tests; others mean that none was run
            return None
        return "not noticed" if self._status == 0 else f"pytest ended with {self._status}:\n{text[-4000:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Only edits whose file or tests contain this.")
    parser.add_argument("--jobs", type=int, default=2, help="Edits to try at once.")
    args = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.file or args.only in mutation.tests]
    if not chosen:
        sys.exit(f"error: no file and no test of an edit contains {args.only!r}")
    home = tempfile.TemporaryDirectory(prefix="glcm-mae-tests-")  # as tests/conftest.py has it, of all that is tried
    os.environ["HF_HOME"] = os.environ["GLCM_MAE_TESTS_HOME"] = home.name
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        done = run_unedited(
            Path(folder), sorted({test for mutation in chosen for test in mutation.tests.split()}), args.jobs
        )
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nerror: these tests must pass before anything is edited")
    third_party_imports()
    missed, waiting, running = 0, list(reversed(chosen)), []
    with tqdm(total=len(chosen), desc="edits") as bar:
        while waiting or running:
            if waiting and len(running) < args.jobs:
                running.append(Attempt(waiting.pop()))
            for attempt in [attempt for attempt in running if attempt.ended()]:
                running.remove(attempt)
                bar.update()
                problem = attempt.problem()
                if problem is not None:
                    missed += 1
                    edit = attempt.mutation
                    bar.write(f"{edit.file}: {edit.old.strip()!r} -> {edit.new.strip()!r}\n  {edit.tests}: {problem}")
            time.sleep(0.05)
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} edits noticed\n")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
