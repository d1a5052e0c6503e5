"""The model as custom code of a Hub repository: what is saved, and what a process without the package loads."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

import modeling_glcm_mae
from hub.export import write_export
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining

PACKAGE = Path(modeling_glcm_mae.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))

# transformers finds the files to copy with these expressions, line by line, docstrings included.
RELATIVE_IMPORT = re.compile(r"^\s*(?:import\s+\.\S+|from\s+\.\S*\s+import\b.*)", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def saved(tiny_config, tmp_path_factory) -> Path:
    """A saved model, and in `expected.pt` an input with its loss."""
    folder = tmp_path_factory.mktemp("hub") / "glcm-mae-tiny"
    torch.manual_seed(0)
    model = GLCMMAEForPreTraining(tiny_config("paper", glcm_levels=16)).eval()
    model.save_pretrained(folder)
    pixel_values, noise = torch.randn(2, 3, 32, 48), torch.rand(2, 24)
    with torch.no_grad():
        outputs = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    torch.save(
        {"pixel_values": pixel_values, "noise": noise, "loss": outputs.loss, "logits": outputs.logits},
        folder.parent / "expected.pt",
    )
    return folder


def run_without_package(script: str, folder: Path, tmp_path: Path) -> dict:
    """Run `script` in a fresh process that cannot import the package; it prints one line of JSON.

    `make test-plain` sets PLAIN_PYTHON to the interpreter of an environment that does not hold it.
    """
    # Also where the package is installed: an editable install is found by a hook on sys.meta_path, so the block comes
    # before all others. Copies that transformers makes are called transformers_modules.<...>, and pass.
    blocked = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_glcm_mae", "triton"):
            raise ImportError(name + " is hidden in this test")

sys.meta_path.insert(0, Block())
try:
    import modeling_glcm_mae
except ImportError:
    pass
else:
    sys.exit("the package was importable")
folder = sys.argv[1]
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    working_directory = tmp_path / "elsewhere"
    working_directory.mkdir()
    done = subprocess.run(
        [os.environ.get("PLAIN_PYTHON", sys.executable), "-c", blocked + script, str(folder)],
        cwd=working_directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_saving_writes_the_code_beside_safetensors(saved):
    names = {path.name for path in saved.iterdir()}
    assert {"configuration_glcm_mae.py", "modeling_glcm_mae.py", "glcm.py", "config.json", "model.safetensors"} <= names
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "vit_mae"
    assert config["auto_map"]["AutoConfig"] == "configuration_glcm_mae.GLCMMAEConfig"
    assert config["auto_map"]["AutoModelForPreTraining"] == "modeling_glcm_mae.GLCMMAEForPreTraining"
    for name in names:
        if name.endswith(".py"):
            assert (saved / name).read_text() == (PACKAGE / name).read_text()


@pytest.mark.slow
@pytest.mark.plain
def test_model_of_an_export_loads_by_its_subfolder(tiny_model, tmp_path):
    # As the model card shows it.
    transform = ImageTransform(32)
    write_export(tmp_path / "export", tiny_model(), transform.processor(), {}, [], {"title": "x", "repo_id": "x"})
    script = """
from transformers import AutoModel, AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained(sys.argv[1], subfolder="pretraining", trust_remote_code=True)
encoder = AutoModel.from_pretrained(sys.argv[1])
print(json.dumps({"model": type(model).__name__, "encoder": type(encoder).__name__}))
"""
    names = run_without_package(script, tmp_path / "export", tmp_path)
    assert names == {"model": "GLCMMAEForPreTraining", "encoder": "ViTModel"}


@pytest.mark.plain
def test_custom_code_loads_without_the_package(saved, tmp_path):
    found = run_without_package(
        """
import torch
from transformers import AutoModelForPreTraining, ViTMAEForPreTraining

expected = torch.load(folder + "/../expected.pt")
inputs = {"pixel_values": expected["pixel_values"], "noise": expected["noise"], "interpolate_pos_encoding": True}

stock = AutoModelForPreTraining.from_pretrained(folder)
ours = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
grey = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True, num_channels=1)
ours.save_pretrained("again")
again = AutoModelForPreTraining.from_pretrained("again", trust_remote_code=True)

def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

with torch.no_grad():
    outputs = ours(**inputs)
print(json.dumps({
    "stock": type(stock).__module__ + "." + type(stock).__name__,
    "ours": type(ours).__name__,
    "module": type(ours).__module__,
    "config": type(ours.config).__name__,
    "levels": ours.config.glcm_levels,
    "loss": outputs.loss.item() - expected["loss"].item(),
    "logits": (outputs.logits - expected["logits"]).abs().max().item(),
    "same_weights": equal(stock, ours) and equal(again, ours),
    "again": type(again).__name__,
    "grey": grey.config.num_channels,
}))
""",
        saved,
        tmp_path,
    )
    assert found["stock"] == "transformers.models.vit_mae.modeling_vit_mae.ViTMAEForPreTraining"
    assert found["ours"] == found["again"] == "GLCMMAEForPreTraining" and found["config"] == "GLCMMAEConfig"
    assert found["module"].startswith("transformers_modules.")
    assert found["levels"] == 16 and found["grey"] == 1
    assert abs(found["loss"]) < 1e-6 and found["logits"] < 1e-6
    assert found["same_weights"]


def test_importing_the_package_leaves_other_checkpoints_alone(saved, tiny_fields, tmp_path):
    stock = ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields))
    stock.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    for folder in (tmp_path, saved):
        model = AutoModelForPreTraining.from_pretrained(folder)
        assert type(model) is ViTMAEForPreTraining and type(model.config) is ViTMAEConfig
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stock.state_dict().items())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_survive_the_copy_to_the_hub(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
    relative = []
    # transformers asks for what is imported outside a `try` to be installed.
    optional = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in allowed for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` is not copied, `from .sub.x import y` and `from ..x import y` break the saving.
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (PACKAGE / f"{node.module}.py").is_file(), ast.unparse(node)
            relative.append(node.lineno)
    # One found by the expression but not by the parser stands in a docstring or comment, and would be copied too.
    found = [source.count("\n", 0, match.end()) + 1 for match in RELATIVE_IMPORT.finditer(source)]
    assert sorted(found) == sorted(relative)
