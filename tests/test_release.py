"""One command from downloads to a release, against a Hub on this machine: killed, gone on with, and tried dry."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import encode, write
from huggingface_hub import HfApi, ModelCard
from test_publish import RECIPES

import release as recipe
from commandline import UsageError
from hub.publication import Publication
from hub.repository import MANIFEST, check_owner, look_at_repository, set_variable
from training.release_plan import ReleaseArguments, corpora_of

PUBLISHED = {
    *(("model", f"org/glcm-mae-{name}{kind}") for name in ("busi", "gbcu") for kind in ("", "-classifier")),
    *(("dataset", "org/busi"), ("space", "org/medical_classification"), ("space", "org/glcm-mae-demo")),
}
SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "resize_to": 36}
SIZES |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "held_out": 4, "num_pictures": 0}
TRAINING = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "dataloader_num_workers": 0, "use_cpu": "true"}


def blocks(*seed: int) -> bytes:
    """Random blocks: no two images are near-identical, so each is a group of its own."""
    random = np.random.default_rng(seed)
    return encode(np.kron(random.integers(0, 256, (8, 8), dtype=np.uint8), np.ones((6, 6), np.uint8)))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """BUSI, which may be given out, and GBCU, which must not."""
    folder, lists = tmp_path_factory.mktemp("downloads"), {"train": [], "test": []}
    for label, name in enumerate(("normal", "benign", "malignant")):
        for index in range(1, 9):
            write(folder / "busi" / "Dataset_BUSI_with_GT" / name / f"{name} ({index}).png", blocks(0, label, index))
            file = f"im{label}{index:04d}.png"
            write(folder / "gbcu" / "imgs" / file, blocks(1, label, index))
            lists["test" if index > 6 else "train"].append(f"{file},{label}")
    for part, lines in lists.items():
        (folder / "gbcu" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def command(data: Path, output: Path, *more: str) -> list[str]:
    given = [sys.executable, str(RECIPES / "release.py"), "--org", "org", "--data_dir", str(data)]
    given += ["--output_dir", str(output), "--folds", "0", "--prepare_options", "num_folds=2"]
    given += ["--pretrain_options", *(f"{name}={value}" for name, value in (SIZES | TRAINING).items())]
    return [*given, "--finetune_options", *(f"{name}={value}" for name, value in TRAINING.items()), *more]


def environment(hub, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # Python imports this at each start; a thousand draws for every interval would be most of the test.
    few = "import sys\nif 'finetune' in sys.argv[0] or 'cross_' in sys.argv[0]:\n    from judging import statistics"
    write(home / "start" / "sitecustomize.py", (few + "\n    " + FEW).encode())
    given["PYTHONPATH"] = os.pathsep.join([str(home / "start"), str(RECIPES), str(RECIPES.parent)])
    return given | hub.environment(home, token)


FEW = "statistics.bootstrap.__kwdefaults__['num_resamples'] = 10"


def release(hub, home: Path, given: list[str], token: str | None = "hf_writer") -> subprocess.CompletedProcess:
    return subprocess.run(given, capture_output=True, text=True, env=environment(hub, home, token), timeout=3000)


def killed_when(hub, home: Path, given: list[str], reached: Callable[[], bool], told_first: bool = False) -> None:
    """Start it, and end it and all that it started at once, or tell only itself to end, once something has happened."""
    log = home / "killed.log"
    with log.open("a") as lines:
        given_to = {"stdout": lines, "stderr": lines, "env": environment(hub, home), "start_new_session": True}
        with subprocess.Popen(given, **given_to) as started:
            try:
                while not reached():
                    assert started.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.02)
                if told_first:
                    started.terminate()
                    assert started.wait(120) == 128 + signal.SIGTERM
                    with pytest.raises(ProcessLookupError):  # soon nobody is left of what it started
                        for _ in range(100):
                            os.killpg(started.pid, 0)
                            time.sleep(0.1)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)


def sent(hub) -> dict[tuple[str, str], tuple[int, dict[str, str]]]:
    """Of each repository, how many commits there are, and the tags."""
    return {(kind, name): (len(hub.commits(name, kind)), dict(repo.tags)) for (kind, name), repo in hub.repos.items()}


def assert_published_once(hub) -> None:
    assert hub.repos.keys() == PUBLISHED
    for (kind, name), (commits, tags) in sent(hub).items():
        assert commits == 2 and tags == {"v1": hub.commits(name, kind)[0].sha}, name
        assert MANIFEST in hub.files(name, repo_type=kind)
    (collection,) = hub.collections.values()
    assert {(item["type"], item["id"]) for item in collection["items"]} == PUBLISHED
    assert len(collection["items"]) == len(PUBLISHED)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # thirty processes, each of which imports everything
def test_killed_twice_and_started_again_each_thing_is_published_once(
    hub, client, verified_here, downloads, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    given = command(downloads, output)
    # Amid the first pretraining; and where the first encoder has its commit, and is being loaded back, without a tag.
    killed_when(hub, tmp_path, given, (output / "busi" / "fold_0" / "pretrain" / "log.txt").exists, told_first=True)
    assert hub.repos.keys() == PUBLISHED and {commits for commits, _ in sent(hub).values()} == {1}
    encoder = hub.repo("org/glcm-mae-busi")
    killed_when(hub, tmp_path, given, lambda: len(encoder.line(encoder.at("main"))) == 2)
    assert not encoder.tags

    done = release(hub, tmp_path, given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "data set gbcu is not published: GBCU is given out by its authors on request only" in done.stderr
    assert_published_once(hub)
    assert hub.repo("org/glcm-mae-demo", "space").variables == {"GLCM_MAE_MODEL": "org/glcm-mae-busi-classifier"}
    card = ModelCard(hub.files("org/glcm-mae-busi-classifier")["README.md"].decode())
    assert card.data.base_model == "org/glcm-mae-busi" and card.data.datasets == ["org/busi"]
    assert "Results of the cross-validation" in card.text
    of_gbcu = ModelCard(hub.files("org/glcm-mae-gbcu-classifier")["README.md"].decode())
    assert of_gbcu.data.base_model == "org/glcm-mae-gbcu" and of_gbcu.data.datasets is None
    for name in ("busi", "gbcu"):  # the encoder that the classifier began with
        export = output / name / "fold_0" / "pretrain" / "export" / "model.safetensors"
        assert hub.files(f"org/glcm-mae-{name}")["model.safetensors"] == export.read_bytes()

    client()
    before, begun, started = sent(hub), len(hub.requests), []
    monkeypatch.setattr(recipe, "step", lambda script, *_: started.append(script))
    recipe.main(given[2:])
    assert started == ["cross_validate"] * 2 and sent(hub) == before
    assert not [path for _, path, _ in hub.requests[begun:] if "/commit/" in path]
    assert_published_once(hub)
    capsys.readouterr()
    recipe.main([*given[2:], "--dry_run", "true"])
    said = capsys.readouterr().out
    assert said.count("is there") == len(PUBLISHED) and said.count("1 fold(s) trained, summed up") == 2
    with pytest.raises(SystemExit, match=r"prepared with another num_folds \(2 there, 3 here\): take"):
        recipe.main([*given[2:], "--prepare_options", "num_folds=3"])


@pytest.mark.slow
def test_a_dry_run_names_everything_and_writes_nothing(hub, downloads, tmp_path):
    done = release(hub, tmp_path, command(downloads, tmp_path / "run", "--dry_run", "true"))
    assert done.returncode == 0, done.stderr
    assert f"corpora: busi, gbcu, which {downloads} holds" in done.stderr
    for kind, name in PUBLISHED:
        assert f"{kind:<8} {name} " in done.stdout
    assert done.stdout.count("is new") == len(PUBLISHED) and "data set gbcu is not published: GBCU" in done.stdout
    assert not (tmp_path / "run").exists() and not hub.repos and not hub.collections
    assert {method for method, _, _ in hub.requests} <= {"GET", "HEAD"}


MISTAKES = {
    "a missing folder": (["--corpora", "busi", "pneumonia"], "has no folder pneumonia: put the download there"),
    "a name": (["--corpora", "bussi"], "corpora must be different ones of busi, "),
    "no option": (["--finetune_options", "x"], "must be NAME=VALUE, got 'x'"),
    "pretraining": (["--pretrain_options", "num_epochs=3"], "num_epochs"),
    "fine-tuning": (["--finetune_options", "pooling=max"], "pooling"),
    "preparing": (["--prepare_options", "num_folds=1"], "num_folds must be at least 2"),
    "a config": (["--pretrain_config", "configs/{corpus}.yaml", "--corpora", "busi"], "configs/busi.yaml: No such"),
    "the organisation": (["--org", "a/b"], "org"),
    "somebody else's": (["--org", "other"], "org, who is logged in, may not write for other"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_done(hub, client, downloads, tmp_path, mistake):
    client()
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        recipe.main([*command(downloads, tmp_path / "run")[2:], *options])
    said = str(stopped.value)
    assert said.startswith("error: ") and message in said and "\n" not in said
    assert not (tmp_path / "run").exists() and not hub.repos


def test_a_repository_of_others_stops_it_before_any_is_made(hub, client, downloads, tmp_path):
    client()
    demo = "org/glcm-mae-demo"  # the last that would be made
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo(demo, repo_type="space", space_sdk="gradio")
    hub.commit(demo, "by others", {"main.py": b"1\n"}, "space")
    with pytest.raises(SystemExit, match=r"spaces/org/glcm-mae-demo holds main.py, and no \.glcm_mae_files.json"):
        recipe.main(command(downloads, tmp_path / "run")[2:])
    assert len(hub.repos) == 1 and not (tmp_path / "run").exists()


def test_another_download_in_the_folder_is_told(hub, client, downloads, tmp_path):
    client()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "covid_ct").symlink_to(downloads / "busi")
    with pytest.raises(SystemExit, match="covid_ct is not a download of covid_ct"):
        recipe.main(command(tmp_path / "data", tmp_path / "run")[2:])
    with pytest.raises(SystemExit, match="holds no folder of a corpus that has configs: busi, "):
        recipe.main(command(tmp_path, tmp_path / "run")[2:])


def test_what_may_be_written_is_known_by_reading(hub, client, tmp_path):
    where = Publication(tmp_path, "org/one", "space")
    hub.add_user("member", "hf_member", orgs=("org",))
    client("hf_member")
    check_owner(where)
    assert not look_at_repository(where) and not hub.repos
    for token, message in (("hf_reader", "only reads"), ("hf_wrong", "not valid"), (None, "no access token")):
        client(token)
        with pytest.raises(UsageError, match=message):
            check_owner(where)
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo("org/one", repo_type="space", space_sdk="gradio")
    client()
    assert look_at_repository(where)
    for value in ("a/b", "c/d"):  # the second time, it is the owner's
        set_variable(where, "GLCM_MAE_MODEL", value)
    assert hub.repo("org/one", "space").variables == {"GLCM_MAE_MODEL": "a/b"}
    client("hf_reader")
    with pytest.raises(UsageError, match="may not write to"):
        look_at_repository(where)


def test_data_sets_go_out_only_where_a_licence_is_known(downloads, tmp_path):
    for name in ("COVID-19 Cases/P001", "Cap Cases/cap001", "Normal Cases/normal001"):
        write(tmp_path / "md" / "covid_ct" / name / "IM0001.dcm", b"")
    for name in ("CT_COVID", "CT_NonCOVID"):
        write(tmp_path / "zhao" / "covid_ct" / name / "1.png")
    for name in ("COVID", "non-COVID"):
        write(tmp_path / "soares" / "covid_ct" / name / "1.png")
    reasons = {}
    for folder in ("md", "zhao", "soares"):
        args = ReleaseArguments("org", str(tmp_path / folder), output_dir=str(tmp_path / "run"))
        (corpus,) = corpora_of(args)
        reasons[folder] = corpus.kept_back
        assert any(one.get("repo_type") == "dataset" for one in corpus.published(args)) == (not corpus.kept_back)
    assert reasons["soares"] == "" and "authors" in reasons["zhao"] and "not known" in reasons["md"]


@pytest.mark.parametrize("given", [[], ["ORG=org"], ["DATA=data"]])
def test_make_release_says_what_it_needs(given):
    done = subprocess.run(["make", "release", *given, "-n"], capture_output=True, text=True, cwd=RECIPES.parent)
    assert done.returncode == 2 and "ORG and DATA are needed: make release ORG=" in done.stderr
    more = ["make", "release", "ORG=o", "DATA=d", "-n", "ARGS=--jobs 2"]
    shown = [
        subprocess.run([*more, *dry], capture_output=True, text=True, cwd=RECIPES.parent) for dry in ([], ["DRY_RUN=1"])
    ]
    assert ["--dry_run true" in one.stdout for one in shown] == [False, True]
    assert all('--org "o" --data_dir "d"' in one.stdout and "--jobs 2" in one.stdout for one in shown)
