"""What the README tells people to type."""

import importlib
import re
from pathlib import Path

import pytest

from modeling_glcm_mae import GLCMMAEForPreTraining
from recipe_data import ImageTransform
from recipe_export import ADDRESS, write_export

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "recipes" / "README.md"]


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(), re.DOTALL | re.MULTILINE)


def test_python_of_the_readme_runs(tiny_config, tmp_path, monkeypatch):
    # Stands in for what `make quickstart` leaves: of the same kind, untrained.
    config = tiny_config("texture", num_channels=1)
    processor = ImageTransform(32, resize="squash", image_mean=(0.5,), image_std=(0.5,)).processor()
    folder = tmp_path / "runs" / "quickstart" / "export"
    folder.parent.mkdir(parents=True)
    facts = {"title": "Quickstart", "repo_id": ADDRESS, "corpus": "speckle"}
    write_export(folder, GLCMMAEForPreTraining(config), processor, {}, [], facts)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks(DOCS[0], "python")
    assert len(found) >= 4
    for block in found:
        exec(compile(block, str(DOCS[0]), "exec"), names)
    assert names["features"].shape[:2] == (1, 1 + 16)
    assert names["rebuilt"].shape == (4, 1, 64, 64)


def commands() -> list[tuple[str, str]]:
    """Recipe and options of every command in the docs."""
    found = []
    for file in DOCS:
        for block in blocks(file, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.search(r"recipes/(\w+)\.py(.*)", line.split("#")[0])
                if match:
                    found.append((match[1], match[2]))
    return found


@pytest.mark.parametrize("recipe", sorted({recipe for recipe, _ in commands()}))
def test_options_in_the_docs_exist(recipe, capsys):
    module = importlib.import_module(recipe)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) | {"--config"}
    used = {option for name, options in commands() if name == recipe for option in re.findall(r"--\w+", options)}
    assert used <= known, f"unknown in {recipe}.py: {sorted(used - known)}"


def test_make_targets_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text()
    used = {target for file in DOCS for target in re.findall(r"`make ([a-z-]+)", file.read_text())}
    assert used >= {"demo", "serve"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in used)
