"""The Hub that other tests publish to, asked by the real clients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from safetensors.numpy import save_file

REPO = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The client waits a second and more before it tries again."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    save_file({"a": np.arange(30_000, dtype=np.float32)}, path / WEIGHTS)
    (path / "README.md").write_text("---\nlicense: mit\ntags: [medical]\n---\n# Tiny\n")
    (path / "sub" / "notes.txt").write_text("notes\n")
    return path


def api(hub, token: str | bool = "hf_writer") -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def contents(folder: Path) -> dict[str, bytes]:
    hidden = (".cache", ".gitattributes")
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.relative_to(folder).parts[0] not in hidden
    }


def published(hub, folder: Path, repo_id: str = REPO, **options) -> HfApi:
    client = api(hub)
    client.create_repo(repo_id, **options)
    client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload")
    return client


def download(hub, path: Path, filename: str = WEIGHTS, token: str | bool = "hf_writer", **options) -> bytes:
    given = {"endpoint": hub.endpoint, "token": token, "cache_dir": path}
    return Path(hf_hub_download(REPO, filename, **given | options)).read_bytes()


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def python(hub, home: Path, script: str, token: str | None = "hf_writer") -> dict:
    """Run `script` in a process of its own; it fills the dict `found`."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", f"import json\nfound = {{}}\n{script}\nprint(json.dumps(found))"]
    given |= hub.environment(home, token)
    done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_folder_is_one_commit_with_equal_bytes_at_every_revision(hub, folder, tmp_path):
    client = published(hub, folder)
    newest, first = hub.commits(REPO)
    assert (newest.title, first.title) == ("Upload", "initial commit")
    assert newest.files[WEIGHTS].large and not newest.files["README.md"].large
    client.create_tag(REPO, tag="v1")
    client.create_branch(REPO, branch="trial/one", revision="v1")
    hub.commit(REPO, "by somebody else", {"sub/notes.txt": b"other\n"})
    for revision in ("v1", "trial/one", newest.sha):
        options = {"endpoint": hub.endpoint, "token": "hf_reader", "cache_dir": tmp_path / revision}
        path = snapshot_download(REPO, revision=revision, **options)
        assert contents(Path(path)) == contents(folder)
        assert Path(path).name == newest.sha
    assert download(hub, tmp_path / "main", "sub/notes.txt") == b"other\n" == hub.files(REPO)["sub/notes.txt"]
    assert [commit.title for commit in client.list_repo_commits(REPO)] == ["by somebody else", "Upload", first.title]
    refs = client.list_repo_refs(REPO)
    assert {ref.name for ref in refs.branches} == {"main", "trial/one"} and refs.tags[0].target_commit == newest.sha


def test_info_and_listings(hub, folder):
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["ViTModel"], "model_type": "vit", "auto_map": {"AutoModel": "a.B"}})
    )
    client = published(hub, folder)
    info = client.model_info(REPO, files_metadata=True)
    assert info.sha == hub.commits(REPO)[0].sha and not info.private and info.gated is False
    assert info.pipeline_tag == "image-feature-extraction" and info.card_data.license == "mit"
    assert {"medical", "vit", "custom_code", "license:mit"} <= set(info.tags)
    weights = next(file for file in info.siblings if file.rfilename == WEIGHTS)
    assert weights.lfs.sha256 == hub.commits(REPO)[0].files[WEIGHTS].sha256
    hub.page_size = 2
    everything = list(client.list_repo_tree(REPO, recursive=True, expand=True))
    assert [entry.path for entry in everything] == sorted({*hub.files(REPO), "sub"})
    assert {entry.last_commit.title for entry in everything} == {"Upload", "initial commit"}
    assert [entry.path for entry in client.list_repo_tree(REPO, "sub")] == ["sub/notes.txt"]
    assert [entry.path for entry in client.get_paths_info(REPO, ["sub", "README.md", "missing"])] == [
        "sub",
        "README.md",
    ]


def test_a_commit_adds_copies_and_deletes_and_nothing_new_is_no_commit(hub, folder):
    client = published(hub, folder)
    client.upload_folder(repo_id=REPO, folder_path=folder)
    assert len(hub.commits(REPO)) == 2, "the client leaves out what is there"
    (folder / "sub" / "notes.txt").rename(folder / "more.txt")
    client.upload_folder(repo_id=REPO, folder_path=folder, delete_patterns=["sub/*"])
    assert len(hub.commits(REPO)) == 3
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "more.txt", WEIGHTS}
    operations = [CommitOperationCopy(WEIGHTS, "copy.safetensors"), CommitOperationDelete(WEIGHTS)]
    operations += [CommitOperationCopy("more.txt", "copy.txt"), CommitOperationAdd("sub/a.txt", b"a")]
    client.create_commit(REPO, operations, commit_message="Move", commit_description="why")
    files = hub.files(REPO)
    assert files["copy.safetensors"] == (folder / WEIGHTS).read_bytes() and WEIGHTS not in files
    assert files["copy.txt"] == files["more.txt"] and hub.commits(REPO)[0].description == "why"
    client.delete_folder("sub", REPO)
    assert "sub/a.txt" not in hub.files(REPO)
    with pytest.raises(EntryNotFoundError):
        client.delete_file("missing.txt", REPO)


def test_a_commit_on_an_old_parent_is_refused(hub, folder):
    client = published(hub, folder)
    parent = hub.commits(REPO)[0].sha
    hub.commit(REPO, "by somebody else", {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError) as error:
        client.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=REPO, parent_commit=parent)
    assert status_of(error) == 412 and len(hub.commits(REPO)) == 3


def test_a_pull_request_leaves_main_alone(hub, folder):
    client = published(hub, folder)
    (folder / WEIGHTS).write_bytes(b"\0" * 100)
    stranger = api(hub, "hf_other")
    done = stranger.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True)
    assert done.pr_num == 1 and done.pr_revision == "refs/pr/1" and len(hub.commits(REPO)) == 2
    assert hub.files(REPO, "refs/pr/1")[WEIGHTS] == b"\0" * 100 != hub.files(REPO)[WEIGHTS]
    assert [ref.ref for ref in client.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    with pytest.raises(HfHubHTTPError) as error:
        stranger.upload_folder(repo_id=REPO, folder_path=folder)
    assert status_of(error) == 403


def test_branches_and_tags_are_made_once(hub, folder):
    client = published(hub, folder)
    for create, delete, name in (
        (client.create_tag, client.delete_tag, {"tag": "v1"}),
        (client.create_branch, client.delete_branch, {"branch": "trial"}),
    ):
        create(REPO, **name)
        create(REPO, **name, exist_ok=True)
        with pytest.raises(HfHubHTTPError) as error:
            create(REPO, **name)
        assert status_of(error) == 409
        delete(REPO, **name)
        with pytest.raises(RevisionNotFoundError):
            delete(REPO, **name)
    with pytest.raises(BadRequestError):
        client.create_branch(REPO, branch="refs/pr/1")


def test_repositories_are_made_once_and_a_name_serves_each_type(hub):
    client = api(hub)
    url = client.create_repo(REPO)
    assert (url.repo_id, url.repo_type, str(url)) == (REPO, "model", f"{hub.endpoint}/{REPO}")
    assert client.create_repo(REPO, exist_ok=True) == url
    with pytest.raises(HfHubHTTPError) as error:
        client.create_repo(REPO)
    assert status_of(error) == 409
    client.create_repo(REPO, repo_type="dataset")
    client.create_repo(REPO, repo_type="space", space_sdk="gradio")
    assert client.space_info(REPO).sdk == "gradio" and client.dataset_info(REPO).id == REPO
    client.delete_repo(REPO, repo_type="dataset")
    assert sorted(hub.repos) == [("model", REPO), ("space", REPO)]
    with pytest.raises(RepositoryNotFoundError):
        client.delete_repo(REPO, repo_type="dataset")
    hub.add_user("member", "hf_member", orgs=("org",))
    member = api(hub, "hf_member")
    assert member.whoami()["orgs"][0]["name"] == "org"
    assert member.create_repo("org/other").repo_id == "org/other" and member.create_repo("own").repo_id == "member/own"


def test_who_may_read(hub, folder, tmp_path):
    client = published(hub, folder, private=True)
    assert download(hub, tmp_path / "a", token="hf_reader") == (folder / WEIGHTS).read_bytes()
    for number, token in enumerate(("hf_other", False)):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info(REPO)
        with pytest.raises(RepositoryNotFoundError):
            download(hub, tmp_path / f"b{number}", token=token)
    client.update_repo_settings(REPO, private=False, gated="manual")
    assert api(hub, False).model_info(REPO).gated == "manual"
    for number, (token, status) in enumerate((("hf_other", 403), (False, 401))):
        with pytest.raises(GatedRepoError) as error:
            download(hub, tmp_path / f"c{number}", token=token)
        assert status_of(error) == status
    client.grant_access(REPO, "other")
    assert download(hub, tmp_path / "d", token="hf_other") == (folder / WEIGHTS).read_bytes()


def test_what_is_not_there(hub, folder, tmp_path):
    client = published(hub, folder)
    with pytest.raises(EntryNotFoundError):
        download(hub, tmp_path / "a", "missing.txt")
    with pytest.raises(RevisionNotFoundError):
        download(hub, tmp_path / "a", revision="missing")
    with pytest.raises(RevisionNotFoundError):
        client.model_info(REPO, revision="missing")
    with pytest.raises(RevisionNotFoundError):
        client.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=REPO, revision="missing")
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("org/missing")
    assert not client.file_exists(REPO, "missing.txt") and client.file_exists(REPO, "README.md")
    assert not client.repo_exists("org/missing") and not client.revision_exists(REPO, "missing")
    with pytest.raises(HfHubHTTPError) as error:
        client.list_repo_likers(REPO).__next__()
    assert status_of(error) == 404, "a route that this Hub does not have"


def test_who_may_write(hub, folder):
    for token, status in (("hf_reader", 403), ("hf_other", 403), ("hf_wrong", 401), (False, 401)):
        with pytest.raises(HfHubHTTPError) as error:
            api(hub, token).create_repo(REPO)
        assert status_of(error) == status and not hub.repos
    client = published(hub, folder)
    for call in (api(hub, "hf_reader").create_tag, api(hub, "hf_other").create_tag):
        with pytest.raises(HfHubHTTPError) as error:
            call(REPO, tag="v1")
        assert status_of(error) == 403
    assert client.whoami()["auth"]["accessToken"]["role"] == "write"
    hub.revoke("hf_writer")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client.whoami()


def test_a_large_file_goes_whole_or_in_parts(hub, tmp_path):
    data = np.random.default_rng(0).integers(0, 255, 11 * 2**20, dtype=np.uint8).tobytes()
    client = api(hub)
    client.create_repo(REPO)
    client.upload_file(path_or_fileobj=b"a" * len(data), path_in_repo="large.txt", repo_id=REPO)
    assert hub.commits(REPO)[0].files["large.txt"].large, "by its size"
    hub.part_size = 4 * 2**20
    client.upload_file(path_or_fileobj=data, path_in_repo="large.bin", repo_id=REPO)
    assert sum(method == "PUT" for method, _, _ in hub.requests) == 1 + 3
    assert download(hub, tmp_path, "large.bin") == data == hub.files(REPO)["large.bin"]
    assert download(hub, tmp_path, "large.txt") == b"a" * len(data)


def test_no_token_goes_to_the_storage(hub, folder):
    client = published(hub, folder, private=True)
    place = hub.commits(REPO)[0].files[WEIGHTS].sha256
    assert get_session().get(f"{hub.storage}/lfs/{place}").content == (folder / WEIGHTS).read_bytes()
    leak = {"Authorization": f"Bearer {client.token}"}
    assert get_session().get(f"{hub.storage}/lfs/{place}", headers=leak).status_code == 400


def test_parts_of_a_file(hub, folder):
    published(hub, folder)
    data = (folder / WEIGHTS).read_bytes()
    with HfFileSystem(endpoint=hub.endpoint, token="hf_reader").open(f"{REPO}/{WEIGHTS}", block_size=1000) as file:
        file.seek(5000)
        assert file.read(10) == data[5000:5010]
        file.seek(-7, 2)
        assert file.read() == data[-7:]
    assert any(status == 206 for _, _, status in hub.requests)


def test_fail_answers_as_told_and_the_client_tries_again(hub, folder):
    hub.fail("PUT", "^/lfs/")
    hub.fail("POST", "/preupload/", times=2, status=429, headers={"Retry-After": "0"})
    published(hub, folder)
    statuses = [status for method, path, status in hub.requests if method == "PUT" or "/preupload/" in path]
    assert statuses == [429, 429, 200, 503, 200] and len(hub.commits(REPO)) == 2
    hub.fail("GET", "/refs$", every=2, times=None)
    client = api(hub)
    for turn in range(4):
        if turn % 2:
            with pytest.raises(HfHubHTTPError):
                client.list_repo_refs(REPO)
        else:
            client.list_repo_refs(REPO)
    hub.mend()
    client.list_repo_refs(REPO), client.list_repo_refs(REPO)


def test_a_cut_upload_is_sent_again_and_a_cut_download_goes_on(hub, folder, tmp_path, monkeypatch):
    hub.cut("^/lfs/", after_bytes=10_000)
    published(hub, folder)
    assert [status for method, _, status in hub.requests if method == "PUT"] == [0, 200]
    assert hub.files(REPO)[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    hub.requests.clear()
    monkeypatch.setattr(
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000
    )  # what the client keeps of a cut download
    hub.cut("^/lfs/", after_bytes=50_000, times=2)
    assert download(hub, tmp_path) == (folder / WEIGHTS).read_bytes()
    got = [status for method, path, status in hub.requests if method == "GET" and path.startswith("/lfs/")]
    assert got == [0, 0, 206], "only the missing bytes"


def test_a_lost_answer_hides_a_commit_that_was_made(hub, folder):
    hub.lose_answer("/commit/main$")
    with pytest.raises(Exception, match="disconnected|reset|closed"):
        published(hub, folder)
    assert len(hub.commits(REPO)) == 2 and hub.requests[-1][2] == 0
    api(hub).upload_folder(repo_id=REPO, folder_path=folder)
    assert len(hub.commits(REPO)) == 2


def test_a_token_can_end_half_way(hub, folder):
    hub.revoke_after("hf_writer", 2)  # the repository and the first question before an upload
    with pytest.raises(HfHubHTTPError) as error:
        published(hub, folder)
    assert status_of(error) == 401 and len(hub.commits(REPO)) == 1
    with pytest.raises(HfHubHTTPError):
        api(hub).whoami()


def card(metadata: str) -> str:
    return f"---\n{metadata}\n---\n# Card\n"


INDEX = "model-index: [{name: a, results: [{task: {type: image-classification}, dataset: {%s}, metrics: [%s]}]}]"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: mit-ish", "license"),
        ("license: other", "license_name"),
        ("license: [mit", "flow sequence"),
        ("pipeline_tag: image-guessing", "pipeline_tag"),
        (INDEX % ("name: b", "{type: accuracy, value: 1}"), r"model-index\[0\].results\[0\].dataset.type"),
        (INDEX % ("name: b, type: c", "{type: accuracy}"), "metrics"),
    ],
)
def test_a_bad_card_is_refused_before_and_in_a_commit(hub, metadata, message):
    client = api(hub)
    client.create_repo(REPO)
    with pytest.raises(ValueError, match=message):
        client.upload_file(path_or_fileobj=card(metadata).encode(), path_in_repo="README.md", repo_id=REPO)
    assert len(hub.commits(REPO)) == 1


def test_a_good_card_and_the_validation_of_cards(hub, tmp_path):
    good = card(f"license: other\nlicense_name: ours\n{INDEX % ('name: b, type: c', '{type: accuracy, value: 1}')}")
    found = python(
        hub,
        tmp_path,
        f"""
from huggingface_hub import DatasetCard, ModelCard
ModelCard({good!r}).validate()
for name, kind, text in (("model", ModelCard, "license: mit-ish"), ("data", DatasetCard, "size_categories: few")):
    try:
        kind(f"---\\n{{text}}\\n---\\n").validate()
    except ValueError as error:
        found[name] = str(error)
""",
        token=None,
    )
    assert "mit-ish" in found["model"] and "size_categories" in found["data"]


def test_a_space_with_its_settings(hub, tmp_path):
    client = api(hub)
    with pytest.raises(ValueError):
        client.create_repo(REPO, repo_type="space")
    client.create_repo(REPO, repo_type="space", space_sdk="gradio", private=True)
    files = {"README.md": card("sdk: gradio\ncolorFrom: red\ncolorTo: blue").encode(), "app.py": b"app = 1\n"}
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    client.create_commit(REPO, operations, commit_message="App", repo_type="space")
    info = client.space_info(REPO)
    assert info.sdk == "gradio" and info.private and info.card_data.colorFrom == "red"
    assert download(hub, tmp_path, "app.py", repo_type="space") == files["app.py"]
    with pytest.raises(ValueError, match="colorTo"):
        content = card("sdk: gradio\ncolorTo: beige").encode()
        client.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id=REPO, repo_type="space")


def test_collections(hub, folder):
    client = published(hub, folder)
    made = client.create_collection("GLCM-MAE", namespace="org", description="models")
    assert client.create_collection("GLCM-MAE", namespace="org", exists_ok=True).slug == made.slug
    client.add_collection_item(made.slug, item_id=REPO, item_type="model", note="first")
    client.add_collection_item(made.slug, item_id=REPO, item_type="model", exists_ok=True)
    (item,) = client.get_collection(made.slug).items
    assert (item.item_id, item.item_type, item.note) == (REPO, "model", "first")
    for call in (
        lambda: client.create_collection("GLCM-MAE", namespace="org"),
        lambda: client.add_collection_item(made.slug, item_id=REPO, item_type="model"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status_of(error) == 409
    with pytest.raises(RepositoryNotFoundError):
        client.add_collection_item(made.slug, item_id="org/missing", item_type="model")
    with pytest.raises(HfHubHTTPError) as error:
        client.get_collection("org/missing-0")
    assert status_of(error) == 404


def test_a_data_set_by_parquet_whole_and_as_a_stream(hub, tmp_path):
    found = python(
        hub,
        tmp_path,
        """
from datasets import Dataset, load_dataset
Dataset.from_dict({"a": list(range(100)), "b": ["x"] * 100}).push_to_hub("org/rows", private=True)
found["rows"] = load_dataset("org/rows", split="train")["a"][:]
found["streamed"] = [row["a"] for row in load_dataset("org/rows", split="train", streaming=True)]
""",
    )
    assert found["rows"] == found["streamed"] == list(range(100))
    assert hub.repo("org/rows", "dataset").private
    assert any(path.endswith(".parquet") for path in hub.files("org/rows", repo_type="dataset"))


def test_a_model_of_transformers_there_and_back(hub, tmp_path):
    found = python(
        hub,
        tmp_path,
        """
import torch
from transformers import AutoModel, ViTConfig, ViTModel
sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = ViTModel(ViTConfig(**sizes, intermediate_size=16)).eval()
model.push_to_hub("org/vit", private=True)
again = AutoModel.from_pretrained("org/vit")
found["class"] = type(again).__name__
found["equal"] = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
""",
    )
    assert found == {"class": "ViTModel", "equal": True}
    assert hub.repo("org/vit").private and WEIGHTS in hub.files("org/vit")
