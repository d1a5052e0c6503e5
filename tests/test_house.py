"""The house: which room may import which, that nothing goes in a circle, and that files stay small enough to read."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES, PACKAGE = ROOT / "recipes", ROOT / "modeling_glcm_mae"
BASE = {"commandline", "output_folder"}  # modules, not rooms: what all of the recipes stand on
SCRIPTS = {file.stem for file in RECIPES.glob("*.py")} - BASE
ALL_ROOMS = BASE | {"corpora", "images", "judging", "hub", "training"}
MAY_IMPORT = {
    "commandline": set(),
    "output_folder": {"commandline"},
    "corpora": BASE,
    "images": BASE | {"corpora"},
    "metrics": set(),  # each is published alone
    "judging": {"metrics"},
    "hub": BASE | {"corpora", "images", "judging"},
    "training": BASE | {"corpora", "images", "metrics", "judging", "hub"},
    "benchmarks": ALL_ROOMS,
} | dict.fromkeys(SCRIPTS, ALL_ROOMS)
MAX_LINES = {"modeling_glcm_mae/modeling_glcm_mae.py": 600, "modeling_glcm_mae/glcm.py": 350}


def python_files() -> dict[str, Path]:
    """Every module of recipes/, by the name under which the others import it."""
    found = {}
    for file in sorted(RECIPES.rglob("*.py")):
        parts = file.relative_to(RECIPES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(file: Path, modules: dict[str, Path]) -> set[str]:
    """Which of `modules` a file imports, wherever in it."""
    found = set()
    beside = "benchmarks." if file.parent.name == "benchmarks" else ""  # a script finds what lies beside it
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        found |= {name for name in names | {beside + name for name in names} if name in modules}
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node] - {node}):
                circle = visit(other, [*path, node])
                if circle:
                    return circle
            done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


@pytest.mark.parametrize("module", python_files())
def test_a_room_imports_only_the_rooms_below_it(module):
    room = module.partition(".")[0]
    there = {name.partition(".")[0] for name in imports_of(python_files()[module], python_files())}
    assert room in MAY_IMPORT, f"{module} is not in a room"
    assert there - {room} <= MAY_IMPORT[room]


def test_what_another_file_imports_has_a_public_name():
    for file in [*RECIPES.rglob("*.py"), *PACKAGE.glob("*.py"), *(ROOT / "hub_cards").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], file


def test_recipes_import_each_other_in_no_circle():
    files = python_files()
    assert circle_in({name: imports_of(file, files) for name, file in files.items()}) == []


def test_the_circle_that_is_looked_for_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_demo_is_published_with_all_that_it_imports():
    space, files = ROOT / "hub_cards" / "space", python_files()
    listed = set((space / "files.txt").read_text(encoding="utf-8").split())
    wanted = {name for file in space.glob("*.py") for name in imports_of(file, files)}
    found: set[str] = set()
    while wanted - found:
        name = min(wanted - found)
        found.add(name)
        wanted |= imports_of(files[name], files)
        wanted |= {name.rpartition(".")[0]} & set(files)  # the room that it is in
    assert {str(files[name].relative_to(ROOT)) for name in found} <= listed


def test_package_imports_itself_in_no_circle_and_backends_only_their_support():
    graph = {
        file.stem: set(re.findall(r"^\s*from \.(\w+) import", file.read_text(encoding="utf-8"), re.MULTILINE))
        for file in PACKAGE.glob("*.py")
    }
    assert circle_in(graph) == []
    assert graph["glcm_support"] == set()
    for backend in ("glcm_sparse", "glcm_numba", "glcm_triton"):
        assert graph[backend] == {"glcm_support"}
    assert graph["glcm_head_triton"] == {"glcm_triton"}


def test_no_name_of_the_recipes_hides_an_installed_package():
    ours = {path.stem for path in RECIPES.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {"images", "hub", "commandline"} <= ours
    assert ours & (set(importlib.metadata.packages_distributions()) | sys.stdlib_module_names) == set()


@pytest.mark.parametrize(
    "file",
    [file for part in ("modeling_glcm_mae", "recipes", "hub_cards", "tests") for file in (ROOT / part).rglob("*.py")],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_files_stay_small_enough_to_read(file):
    name = file.relative_to(ROOT)
    limit = MAX_LINES.get(str(name), 250 if file.stem in SCRIPTS and file.parent == RECIPES else 450)
    limit = 700 if name.parts[0] == "tests" else limit
    assert len(file.read_text(encoding="utf-8").splitlines()) <= limit
