"""Edits that break the code on purpose, each with the tests that must notice: `make mutations` tries them all.

Each edit is made in a copy of the working tree, where the tests named beside it are run: at least one must fail. Before
that, the same tests must pass in a copy without any edit. `make mutations ARGS="--only statistics"` tries the edits
whose file or test contains that word.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """One edit.

    Attributes:
        file: the file it is made in, from the root of the repository.
        old: text that stands in that file exactly once.
        new: what takes its place.
        tests: pytest node ids, separated by blanks; at least one of these tests must fail.
    """

    file: str
    old: str
    new: str
    tests: str


# ------------------------------------------------------------------------------------------------ the package
PACKAGE = []

# ------------------------------------------------------------------------------------ files, runs and resuming
FILES = [
    Mutation(
        "recipes/recipe_files.py",
        "if entry != new.parent and (ours is None or entry.name in ours or entry.name in coming)",
        "if entry != new.parent",
        "tests/test_files.py::test_an_overwritten_corpus_keeps_what_prepare_corpus_did_not_write",
    ),
    Mutation(
        "recipes/recipe_files.py",
        "            target.rename(source)",
        "            pass",
        "tests/test_files.py::test_an_entry_that_cannot_be_moved_leaves_what_was_there",
    ),
    Mutation(
        "recipes/recipe_files.py",
        "    if path.is_dir() and (path.is_symlink() or path.is_mount()):",
        "    if path.is_dir() and path.is_mount():",
        "tests/test_files.py::test_deleting_keeps_the_link_and_what_it_does_not_hold",
    ),
    Mutation(
        "recipes/recipe_files.py",
        "    if not existing.is_dir():",
        "    if existing.is_file() and existing == output:",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/explain.py",
        "    output = check_output(args.output_dir)",
        "    output = Path(args.output_dir)",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        '    if occupied and not (output / "splits.json").is_file():',
        "    if False:",
        "tests/test_files.py::test_a_corpus_is_not_prepared_into_a_folder_of_something_else",
    ),
]

# ------------------------------------------------------------------------------------- corpora, tables, labels
CORPORA = [
    Mutation(
        "recipes/recipe_names.py",
        'f"{salt}\0{text}".encode',
        'f"{text}".encode',
        "tests/test_names.py::test_the_salt_decides_the_names_and_nothing_else",
    ),
    Mutation(
        "recipes/recipe_names.py",
        "group = item.group if record.group is None else pseudonym(salt, record.group)",
        "group = item.group",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/recipe_names.py",
        "key=lambda item: (item.print.sha256, item.record.split or",
        "key=lambda item: (item.original.file_name, item.record.split or",
        "tests/test_names.py::test_the_order_of_the_images_tells_nothing_of_the_names",
    ),
    Mutation(
        "recipes/recipe_names.py",
        """{after.partition(': ')[0]}""",
        """{after}""",
        "tests/test_names.py::test_the_detail_of_an_error_is_not_published",
    ),
    Mutation(
        "recipes/recipe_names.py",
        "annotation = annotation.replace(json.dumps(known), json.dumps(name))",
        "pass",
        "tests/test_names.py::test_masks_and_boxes_go_by_the_written_names",
    ),
    Mutation(
        "recipes/recipe_names.py",
        "os.open(path, flags, 0o600)",
        "os.open(path, flags, 0o644)",
        "tests/test_names.py::test_the_private_table_leads_back_to_each_file_and_only_its_owner_can_read_it",
    ),
    Mutation(
        "recipes/recipe_splits.py",
        "groups = pd.factorize(groups)[0]",
        "pass",
        "tests/test_names.py::test_the_salt_decides_the_names_and_nothing_else",
    ),
    Mutation(
        "recipes/recipe_hub.py",
        "if PRIVATE in parts:",
        "if False:",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "self.keep_file_names = self.corpus in FACTS",
        "self.keep_file_names = True",
        "tests/test_names.py::test_names_are_kept_where_they_are_asked_for_and_of_public_corpora",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "reasons = sorted(publishable(problem, args.salt) for problem in problems)",
        "reasons = [reason for _, reason in problems]",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        'mask.name if item.original is None else f"{name.stem}_mask_{number}{mask.suffix}"',
        "mask.name",
        "tests/test_names.py::test_masks_and_boxes_go_by_the_written_names",
    ),
    Mutation(
        "recipes/recipe_export.py",
        "        return [without_paths(value) for value in settings]",
        "        return settings",
        "tests/test_names.py::test_paths_of_this_machine_stay_out_of_published_settings",
    ),
]

# ------------------------------------------------------------------------------- decoding, DICOM, what is shown
IMAGES = []

# ------------------------------------------------------------------------------------------------- pretraining
PRETRAINING = []

# ------------------------------------------------------------------------------------------------- fine-tuning
FINETUNING = []

# ------------------------------------------------------------------------------- splits, figures and statistics
JUDGING = []

# ----------------------------------------------------------------------------------------------------- the Hub
HUB = []

MUTATIONS = [*PACKAGE, *FILES, *CORPORA, *IMAGES, *PRETRAINING, *FINETUNING, *JUDGING, *HUB]


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


def run_tests(tree: Path, tests: Sequence[str]) -> subprocess.CompletedProcess:
    """Run the tests in `tree` and on its code, not on the code that is installed."""
    path = os.pathsep.join([str(tree), str(tree / "recipes")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def attempt(mutation: Mutation) -> str | None:
    """Make one edit in a copy and run its tests; `None` if they noticed, else what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        file = tree / mutation.file
        source = file.read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            return f"the text to edit stands there {source.count(mutation.old)} times"
        file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
        done = run_tests(tree, mutation.tests.split())
    if done.returncode == 1:  # pytest's exit status for failed tests; others mean that none was run
        return None
    if done.returncode == 0:
        return "not noticed"
    return f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Only edits whose file or tests contain this.")
    parser.add_argument("--jobs", type=int, default=2, help="Edits to try at once.")
    args = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.file or args.only in mutation.tests]
    if not chosen:
        sys.exit(f"error: no file and no test of an edit contains {args.only!r}")
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        done = run_tests(Path(folder), sorted({test for mutation in chosen for test in mutation.tests.split()}))
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nerror: these tests must pass before anything is edited")
    missed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        answers = tqdm(pool.map(attempt, chosen), total=len(chosen), desc="edits")
        for mutation, answer in zip(chosen, answers, strict=True):
            if answer is not None:
                missed += 1
                edit = f"{mutation.old.strip()!r} -> {mutation.new.strip()!r}"
                tqdm.write(f"{mutation.file}: {edit}\n  {mutation.tests}: {answer}")
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} edits noticed\n")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
