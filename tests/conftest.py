"""Fixtures for all tests: the smallest model that has every part, and the material kept beside the repository."""

import contextlib
import functools
import io
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

# The user's home stays as it is: gigabytes of caches would gather there, and the user's token be used. Read at import;
# the processes of pytest-xdist and of try_mutations.py inherit it.
if "GLCM_MAE_TESTS_HOME" not in os.environ:
    _HOME = tempfile.TemporaryDirectory(prefix="glcm-mae-tests-")  # as long as the tests run
    for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))]:
        del os.environ[_name]
    os.environ["HF_HOME"] = os.environ["GLCM_MAE_TESTS_HOME"] = _HOME.name
os.environ["HF_HUB_DISABLE_XET"] = "1"  # read at import; the tests' Hub stores large files without it
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined

# Not beside the package, which tests must leave as it is.
os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "numba")

from hub_server import HubServer
from huggingface_hub import HfApi

from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

SHARED = Path(__file__).resolve().parents[2] / "shared"

# 32 pixels in 4 x 4 patches of 8, one encoder and one decoder layer.
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}


# Tensors of the tests are tiny: more threads would only wait for each other, here and in what the tests launch.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A failure must come back when its test is run alone."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(number)` of PyTorch, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_fields() -> dict[str, int]:
    """The sizes of the tiny model, also valid for a stock `ViTMAEConfig`."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., GLCMMAEConfig]:
    """`tiny_config(preset="texture", **overrides)`."""

    def make(preset: str = "texture", **overrides) -> GLCMMAEConfig:
        return GLCMMAEConfig.from_preset(preset, **(TINY | overrides))

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Callable[..., GLCMMAEForPreTraining]:
    """`tiny_model(preset="texture", **overrides)`, in evaluation mode."""

    def make(preset: str = "texture", **overrides) -> GLCMMAEForPreTraining:
        return GLCMMAEForPreTraining(tiny_config(preset, **overrides)).eval()

    return make


@pytest.fixture
def hub(tmp_path_factory) -> Iterator[HubServer]:
    """A Hub of its own for each test, with a user `org` (tokens hf_writer, hf_reader) and a stranger (hf_other)."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_user("org", "hf_writer")
        server.add_user("org", "hf_reader", role="read")
        server.add_user("other", "hf_other")
        yield server


@pytest.fixture
def client(hub, monkeypatch) -> Callable[..., None]:
    """Makes the recipes' helpers of this process clients of the tests' Hub: `client(token)`."""

    def use(token: str | None = "hf_writer", endpoint: str = hub.endpoint) -> None:
        for module in ("errors", "publication", "repository"):
            monkeypatch.setattr(f"hub.{module}.HfApi", functools.partial(HfApi, endpoint=endpoint, token=token))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)
        for module in ("errors", "repository"):
            monkeypatch.setattr(f"hub.{module}.get_token", lambda: token)
        monkeypatch.setattr("hub.errors.WAITS", (0,) * 5)

    return use


@pytest.fixture
def verified_here(monkeypatch, tmp_path_factory) -> None:
    """What is published is loaded back in this process, with an empty cache, which is faster than in one of its own."""
    from hub import verify

    def run(command: list[str], **options) -> subprocess.CompletedProcess:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                verify.main(*command[2:])
        except Exception as error:  # as Python ends on any of them
            return subprocess.CompletedProcess(command, 1, said.getvalue(), f"{type(error).__name__}: {error}\n")
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr("hub.repository.subprocess", SimpleNamespace(run=run))


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure that is saved, so that a test can read what is written in it."""
    figures, save = [], Figure.savefig

    def keep(figure: Figure, *args, **options) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with real corpora."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the corpora of {SHARED}, which is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def busi_images(shared) -> list[Path]:
    """Five real ultrasound images, without their segmentation masks."""
    folder = shared / "corpora" / "busi"
    images = sorted(path for path in folder.rglob("*.png") if "_mask" not in path.name)
    if len(images) < 5:
        pytest.skip(f"needs the BUSI images of {folder}")
    return images[:: len(images) // 5][:5]
