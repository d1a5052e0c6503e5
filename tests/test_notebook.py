"""recipes/quickstart.ipynb: it runs from its first cell to its last, and shows what its text says."""

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"
NEEDED = "needs the extra dev: pip install -c constraints.txt -e '.[recipes,dev]'"

nbformat = pytest.importorskip("nbformat", reason=NEEDED)
nbclient = pytest.importorskip("nbclient", reason=NEEDED)


def test_it_is_kept_without_what_it_showed():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    links = re.findall(r"\]\(([^)\s]+)\)", "".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


def test_what_it_imports_is_there():
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M)))]
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {"modeling_glcm_mae", "judging.surprise"} <= {node.module for node in imported}
    for node in imported:
        module = importlib.import_module(node.module)
        assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes, where no other program keeps the cores busy
def test_it_shows_what_its_text_says(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason=NEEDED)
    recipes = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")  # it writes to runs/, beside recipes/
    shutil.copytree(ROOT / "hub_cards", tmp_path / "hub_cards")  # the export's card is made of them
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(recipes)}}  # as Jupyter starts it
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.get("name") == "stdout")
    before, after = map(float, re.findall(r"accuracy of the probe \w+ pretraining: (\S+)", said))
    assert before < 0.5 < after
    inside, outside = map(float, re.search(r"in the square (\S+) nats, elsewhere (\S+)", said).groups())
    assert inside > 1.5 * outside
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "runs/notebook/export/model.safetensors").is_file()
