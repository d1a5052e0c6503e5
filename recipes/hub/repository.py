"""A publication meets its repository on the Hub: what is there, one commit, load back, a tag."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    RepoCard,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from commandline import UsageError
from hub.errors import TIMEOUT, explained, reason_of, with_retries
from hub.publication import ONNX_FILE, SAME_COMMAND, Publication, text_of

logger = logging.getLogger("publish")

RECIPES = Path(__file__).resolve().parent.parent
MANIFEST = ".glcm_mae_files.json"  # in a repository: what our last commit wrote, which the next one may delete
ATTRIBUTES = ".gitattributes"  # the Hub makes it, and stores large files by it
MADE_BY_THE_HUB = "Check out the configuration reference at "  # all that the card of a new Space says


def open_repository(publication: Publication, how_to_go_on: str = SAME_COMMAND) -> None:
    """Create the repository, or see that the existing one is ours and as asked for, before anything is sent.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    with explained(publication, how_to_go_on):
        api, where = HfApi(), publication.where
        if not publication.create_pr:
            sdk = None
            if publication.repo_type == "space":
                sdk = RepoCard(text_of(publication.files["README.md"])).data.get("sdk")
            # Not False: that would be public even where the owner's default is private.
            private = publication.private or None
            with_retries(
                "create the repository",
                lambda: api.create_repo(**where, private=private, exist_ok=True, space_sdk=sdk),
            )
            # One that exists may have been "created" by a token that can only read it.
            with_retries("ask for the right to write", lambda: api.auth_check(**where, write=True))
        base = _refuse_unfit(api, publication)
        if publication.revision != base:
            with_retries(
                "create the branch", lambda: api.create_branch(**where, branch=publication.revision, exist_ok=True)
            )
        if publication.gated:
            with_retries("set the gate", lambda: api.update_repo_settings(**where, gated=publication.gated))


def look_at_repository(publication: Publication) -> bool:
    """Whether the repository exists; what `open_repository` finds wrong with it, but nothing is created or changed.

    Raises:
        UsageError: what is wrong.
    """
    with explained(publication):
        api, where = HfApi(), publication.where
        there = with_retries("look for the repository", lambda: api.repo_exists(**where))
        if there:
            with_retries("ask for the right to write", lambda: api.auth_check(**where, write=True))
            _refuse_unfit(api, publication)
        return there


def check_owner(publication: Publication) -> None:
    """See that the access token may create repositories of this owner, as far as the Hub tells without trying.

    Raises:
        UsageError: there is no token, it only reads, or its user is neither the owner nor one who may write for it.
    """
    owner = publication.repo_id.split("/")[0]
    with explained(publication):
        user = with_retries("ask who is logged in", lambda: HfApi().whoami())
    writing = [org["name"] for org in user.get("orgs", ()) if org.get("roleInOrg") != "read"]
    if owner not in (user["name"], *writing):
        raise UsageError(f"{user['name']}, who is logged in, may not write for {owner}: see its members on the Hub")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UsageError(f"the access token of {user['name']} only reads: it needs the role write")


def set_variable(publication: Publication, name: str, value: str) -> None:
    """Give a space a variable of its environment, unless it has one of this name.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    with explained(publication):
        api, repo_id = HfApi(), publication.repo_id
        if name not in with_retries("look at the variables", lambda: api.get_space_variables(repo_id)):
            with_retries("set the variable", lambda: api.add_space_variable(repo_id, name, value))


def _refuse_unfit(api: HfApi, publication: Publication) -> str:
    """The branch that the commit begins from; an error where the repository is not ours or not as asked for."""
    base = with_retries("look for the branch", lambda: _base(api, publication))
    info = with_retries("look at the repository", lambda: api.repo_info(**publication.where, revision=base))
    if publication.private and not info.private:
        raise UsageError(
            f"{publication.address} exists and is public, and private was asked for: make it private in its "
            "settings, or take another repo_id"
        )
    if not publication.replace:
        with_retries("look at the files", lambda: _there_and_ours(api, publication, base))
        _refuse_other_kind(publication, info)
    return base


def _base(api: HfApi, publication: Publication) -> str:
    """The branch to commit to, or the one that it begins from where it does not exist yet."""
    branch = publication.revision
    return branch if branch == "main" or api.revision_exists(**publication.where, revision=branch) else "main"


def _there_and_ours(api: HfApi, publication: Publication, revision: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The files of the repository, and those that our last commit wrote (where there was none: that the Hub made).

    Returns:
        Path -> digest, as the Hub tells it: SHA-256 of a large file, of another that of its git blob. Path -> digests
        of what our last commit wrote there; nothing if all is replaced anyway.

    Raises:
        UsageError: there is content, and no manifest of ours.
    """
    tree = api.list_repo_tree(**publication.where, revision=revision, recursive=True)
    there = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)}
    if publication.replace:
        return there, {}

    def text(name: str) -> str:
        # Not by the cache of the client, whose functions hide which answers are worth another try.
        url = hf_hub_url(**publication.where, filename=name, revision=revision, endpoint=api.endpoint)
        answer = get_session().get(url, headers=build_hf_headers(token=api.token))
        hf_raise_for_status(answer)
        return answer.text

    if MANIFEST in there:
        try:
            ours = {name: set(digests.values()) for name, digests in json.loads(text(MANIFEST))["files"].items()}
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise UsageError(
                f"{MANIFEST} of {publication.address} is not as publish.py writes it ({type(error).__name__}): "
                f"{_way_out(publication)}"
            ) from error
        return there, ours
    foreign = sorted(there.keys() - {ATTRIBUTES})
    if foreign == ["README.md"]:
        said = REGEX_YAML_BLOCK.sub("", text("README.md"), count=1).strip()
        foreign = [] if not said or said.startswith(MADE_BY_THE_HUB) else foreign
    if foreign:
        more = f" and {len(foreign) - 4} more" if len(foreign) > 4 else ""
        raise UsageError(
            f"{publication.address} holds {', '.join(foreign[:4])}{more}, and no {MANIFEST}, so publish.py (of this "
            f"version) did not write it: {_way_out(publication)}"
        )
    return there, {name: {digest} for name, digest in there.items()}


def _way_out(publication: Publication) -> str:
    return (
        "take another repo_id, or have publish.py put this in the place of everything that is there, by --replace true "
        f"(with --dry_run true, it first tells what would be deleted). {publication.folder} is untouched"
    )


def _digests(content: Path | bytes) -> dict[str, str]:
    """Those by which the Hub may know a file."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "git_blob": blob.hexdigest()}


def _manifest(files: dict[str, Path | bytes]) -> bytes:
    about = "What recipes/publish.py of GLCM-MAE wrote with its last commit. The next one deletes no other file."
    written = {name: _digests(files[name]) for name in sorted(files)}
    return (json.dumps({"about": about, "files": written}, indent=1) + "\n").encode()


def _changes(api: HfApi, publication: Publication, revision: str) -> tuple[list[str], list[str]]:
    """Which files of the repository a commit deletes, and which that others wrote or changed it overwrites.

    Raises:
        UsageError: there is content, and no manifest of ours.
    """
    there, ours = _there_and_ours(api, publication, revision)
    gone = [name for name in there if publication.replace or there[name] in ours.get(name, ())]
    gone = [name for name in gone if name not in {*publication.files, MANIFEST, ATTRIBUTES}]
    others = [name for name in publication.files if name in there and there[name] not in ours.get(name, ())]
    return gone, [name for name in others if there[name] not in _digests(publication.files[name]).values()]


def send(publication: Publication, message: str, how_to_go_on: str = SAME_COMMAND) -> dict[str, str]:
    """Send the files in one commit. Again after an interruption, it goes on, without a second commit.

    Args:
        publication: what and how.
        message: of the commit.
        how_to_go_on: after a failure; ends its message.

    Returns:
        `address`, `commit` (SHA), and `pull_request` where one was asked for.

    Raises:
        UsageError: what is wrong, and how to go on. Nothing on this machine is changed.
    """
    open_repository(publication, how_to_go_on)
    with explained(publication, how_to_go_on):
        api, branch = HfApi(), publication.revision
        manifest = _manifest(publication.files)

        def commit():
            gone, overwritten = _changes(api, publication, branch)
            for name in gone:
                logger.info("deletes %s", name)
            for name in overwritten:
                logger.warning("overwrites %s, which others have written or changed", name)
            # Made anew for every try: the client marks those that it has sent.
            operations = [CommitOperationDelete(name) for name in gone]
            operations += [CommitOperationAdd(name, content) for name, content in publication.files.items()]
            return api.create_commit(
                **publication.where,
                operations=[*operations, CommitOperationAdd(MANIFEST, manifest)],
                commit_message=message,
                revision=branch,
                create_pr=publication.create_pr,
            )

        if publication.create_pr:
            # Not tried again: where only the answer was lost, it would be opened twice.
            discussions = f"{publication.address}/discussions"
            with explained(publication, f"first see in {discussions} whether the pull request is there"):
                done = commit()
            if done.pr_url is None:
                raise UsageError(f"{publication.address} holds these very files: there is nothing to propose")
            return {"address": publication.address, "commit": done.oid, "pull_request": done.pr_url}
        done = with_retries("upload", commit)
        return {"address": publication.address, "commit": done.oid}


def finish(publication: Publication, commit: str, how_to_go_on: str = SAME_COMMAND) -> str:
    """Tag the commit, and list the repository in the collection; returns the tag.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    with explained(publication, how_to_go_on):
        api = HfApi()
        tag = _tag(api, publication, commit)
        if publication.collection:
            with_retries("list it in the collection", lambda: _collect(api, publication))
        return tag


def _refuse_other_kind(publication: Publication, info: ModelInfo) -> None:
    """A classifier in the place of an encoder would break whoever uses that one."""
    ours = publication.files.get("config.json")
    if publication.repo_type != "model" or ours is None:
        return
    there, here = (info.config or {}).get("architectures"), json.loads(text_of(ours)).get("architectures")
    if there and there != here:
        raise UsageError(f"{publication.address} holds a {there}, and this is a {here}: take another repo_id")


def _tag(api: HfApi, publication: Publication, commit: str) -> str:
    where = publication.where
    refs = with_retries("list the tags", lambda: api.list_repo_refs(**where))
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    numbers = {int(name[1:]): name for name in tags if re.fullmatch(r"v\d+", name)}
    name = publication.tag
    if name is None:
        # Published before and nothing has changed since: the same tag.
        name = next((name for _, name in sorted(numbers.items()) if tags[name] == commit), None)
        name = name or f"v{max(numbers, default=0) + 1}"
    if tags.get(name, commit) != commit:
        raise UsageError(
            f"the files are published (commit {commit}), but the tag {name} is already at {tags[name]}: take another "
            "tag"
        )
    with_retries("set the tag", lambda: api.create_tag(**where, tag=name, revision=commit, exist_ok=True))
    return name


def _collect(api: HfApi, publication: Publication) -> None:
    owner = publication.repo_id.split("/")[0]
    collection = api.create_collection(publication.collection, namespace=owner, exists_ok=True)
    api.add_collection_item(
        collection.slug, item_id=publication.repo_id, item_type=publication.repo_type, exists_ok=True
    )


def verify(publication: Publication, revision: str, local: Path, how_to_go_on: str = SAME_COMMAND) -> list[str]:
    """Load it from the Hub in a fresh process with an empty cache, and compare it with the folder.

    Args:
        publication: what was sent: a model, which must answer as that of the folder (as ONNX too, if that was sent),
            or a data set, of which every row must be as there.
        revision: the commit.
        local: the folder that was sent.

    Returns:
        What was loaded, a line each.

    Raises:
        UsageError: it does not load, or is otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="glcm-mae-verify-") as home:
        # Without the settings of this process that could stand in for what is on the Hub.
        other = ("PYTHONPATH", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE")
        environment = {name: value for name, value in os.environ.items() if name not in other}
        environment |= {"HF_HOME": home, "HF_ENDPOINT": HfApi().endpoint, "TQDM_DISABLE": "1"}
        token = get_token()
        if token:
            environment["HF_TOKEN"] = token
        command = [
            sys.executable,
            str(RECIPES / "hub" / "verify.py"),
            publication.repo_type,
            publication.repo_id,
            revision,
            str(local.resolve()),
            *(name for name in publication.files if name == ONNX_FILE),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise UsageError(
            f"{publication.address} is published (commit {revision}, which gets no tag), but does not load back: "
            f"{last[-1]}. The folder {publication.folder} is untouched; {how_to_go_on}"
        )
    return done.stdout.splitlines()


def publish(
    publication: Publication, message: str, local: Path | None = None, how_to_go_on: str = SAME_COMMAND
) -> Iterator[str]:
    """Send, load back, and only then tag; what to tell the user, a line each. See `send`, `verify` and `finish`.

    Args:
        publication: what and how.
        message: of the commit.
        local: the folder of the model or data set that was sent; `None` for what is not loaded back.
        how_to_go_on: after a failure; ends its message.
    """
    done = send(publication, message, how_to_go_on)
    for name, value in done.items():
        yield f"{name:<12} {value}"
    if local is not None:
        for line in verify(publication, done["commit"], local, how_to_go_on):
            yield f"verified     {line}"
    if not publication.create_pr:
        yield f"tag          {finish(publication, done['commit'], how_to_go_on)}"


def shown(publication: Publication) -> Iterator[str]:
    """What `--dry_run` prints: every file with its size, what is left out, what becomes of others, and the card.

    Raises:
        UsageError: there is content, and no manifest of ours.
    """
    who = "private" if publication.private else "public, unless its owner's default is private"
    yield f"would publish to {publication.address} ({who}):"
    for name, content in sorted(publication.files.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        yield f"  {size:>12,}  {name}"
    for name, reason in sorted(publication.left_out.items()):
        yield f"  left out      {name}: {reason}"
    yield from _outlook(publication)
    yield ""
    yield text_of(publication.files["README.md"])


def _outlook(publication: Publication) -> Iterator[str]:
    """What would become of the files that are there, as far as that can be seen without a token or a network."""
    get_session().timeout = TIMEOUT
    api = HfApi()
    try:
        gone, overwritten = _changes(api, publication, _base(api, publication))
    except (HTTPError, ConnectionError) as error:
        yield f"  what is there cannot be seen: {reason_of(error, publication) or error}"
        return
    for name in gone:
        yield f"  would delete  {name}"
    for name in overwritten:
        yield f"  overwrites    {name}, which others have written or changed"
