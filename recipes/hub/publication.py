"""Onto the Hub: which files are sent, in one commit, whether they load from there as they do here, and the tag."""

import fnmatch
import hashlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    RepoCard,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy

from commandline import UsageError
from hub.export import ADDRESS
from images.names import PRIVATE

logger = logging.getLogger("publish")
for client in ("httpx", "httpx2"):
    logging.getLogger(client).setLevel(logging.WARNING)  # otherwise a line a request
RECIPES = Path(__file__).resolve().parent.parent
SUFFIXES = {".safetensors", ".json", ".md", ".yaml", ".txt", ".py", ".png", ".jpg", ".parquet", ".css", ".html"}
PLAIN_NAMES = {"LICENSE", "NOTICE", ".gitattributes"}
SECRET_NAMES = (
    *(".env*", "*.env", ".netrc", ".git-credentials", ".pypirc", ".npmrc", "credentials*", "secrets*"),
    *("token", "token.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ecdsa*", "id_ed25519*"),
)
SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}"
    r"|\bsk-[\w-]{20,}|\bxox[abeprs]-[\w-]{10,}|\bAIza[\w-]{35}|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# Anything under such a key, in YAML or JSON, except null and the placeholders that Trainer writes (<HUB_TOKEN>).
SECRET_KEY = re.compile(
    r"(?i)(password|passwd|secret|api[_-]?key|(access|auth|bearer|hf|hub)[_-]?token)[\"']?[ \t]*[:=][ \t]*[\"']?"
    r"(?!null\b|none\b|true\b|false\b)[^\s\"'<>{}\[\],]{6,}"
)
NOT_OURS = {"__pycache__", ".git", ".cache", "runs"}
MANIFEST = ".glcm_mae_files.json"  # in a repository: what our last commit wrote, which the next one may delete
ATTRIBUTES = ".gitattributes"  # the Hub makes it, and stores large files by it
MADE_BY_THE_HUB = "Check out the configuration reference at "  # all that the card of a new Space says
WAITS = (1, 2, 4, 8, 16)  # seconds before each new try
TIMEOUT = 60.0  # seconds without a byte; the client itself would wait for ever
PATIENCE = 100.0  # seconds after which there is no new try
RESULTS = re.compile(r"<!-- results -->.*<!-- end of results -->", re.DOTALL)
_T = TypeVar("_T")


@dataclass
class Publication:
    """What goes to the Hub, and how.

    Attributes:
        folder: holds what is published; named in messages.
        repo_id: OWNER/NAME.
        repo_type: model, dataset or space.
        files: path in the repository -> a file, or its content.
        left_out: path in the folder -> why it is not sent.
        private: create a private repository; an existing one must be private.
        gated: "auto" or "manual" to have people ask for access.
        revision: the branch.
        tag: its name; the next of v1, v2, ... if `None`.
        create_pr: propose the commit as a pull request.
        collection: title of a collection of the same owner to list the repository in.
        replace: delete whatever else the repository holds, whoever wrote it.
        again: how to go on after a failure; ends its message.
    """

    folder: Path
    repo_id: str
    repo_type: str = "model"
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: str | None = None
    revision: str = "main"
    tag: str | None = None
    create_pr: bool = False
    collection: str | None = None
    replace: bool = False
    again: str = "the same command goes on where this one stopped"

    @property
    def command(self) -> str:
        """What publishes the same, whoever began it."""
        given = {"export_dir": self.folder, "repo_id": self.repo_id, "repo_type": self.repo_type}
        given |= {"private": str(self.private).lower(), "revision": self.revision}
        usual = {"repo_type": "model", "private": "false", "revision": "main"}
        options = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if usual.get(name) != value]
        return f"python recipes/publish.py {' '.join(options)}"

    @property
    def address(self) -> str:
        kind = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.repo_type]
        return f"{HfApi().endpoint}/{kind}{self.repo_id}"

    @property
    def where(self) -> dict[str, str]:
        """The repository, as the functions of `HfApi` are told of it."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


def check_repo_id(repo_id: str | None, name: str = "repo_id") -> str:
    """The id, if it is OWNER/NAME as the Hub allows it.

    Raises:
        UsageError: it is not.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{name}: {error}") from error
    if "/" not in repo_id:
        raise UsageError(f"{name} must be OWNER/NAME, got {repo_id!r}")
    return repo_id


def files_of(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a folder that may be published, and why each other one is left out.

    Returns:
        Path in the folder -> file, and path in the folder -> reason.

    Raises:
        UsageError: a link leads out of the folder, or a file is or holds a secret.
    """
    files, left_out = {}, {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        name = "/".join(parts)
        refuse_secret_name(file, folder)
        if file.is_dir():
            continue
        hidden = any(part.startswith(".") for part in parts) and name not in PLAIN_NAMES
        if PRIVATE in parts:
            left_out[name] = "the original names of files and patients: never published"
        elif hidden or NOT_OURS.intersection(parts) or any(part.startswith("checkpoint-") for part in parts):
            left_out[name] = "not part of an export"
        elif file.suffix.lower() not in SUFFIXES and file.name not in PLAIN_NAMES:
            left_out[name] = f"files {file.suffix or 'without a suffix'} are not published (a pickle can run code)"
        else:
            refuse_secret_text(file)
            files[name] = file
    return files, left_out


def refuse_secret_name(file: Path, folder: Path) -> None:
    """Raises a UsageError for a link that leads out of the folder, and for a name that secrets have."""
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{file} is a link to {file.resolve()}, outside {folder}: put the file itself in its place")
    if any(fnmatch.fnmatch(file.name.lower(), pattern) for pattern in SECRET_NAMES):
        raise UsageError(f"{file} looks like a secret by its name: move it out of {folder}")


def refuse_secret_text(file: Path) -> None:
    """Raises a UsageError for an access token, a private key, or a password in a text file."""
    suffix = file.suffix.lower()
    if suffix in (".safetensors", ".png", ".jpg", ".parquet"):
        return
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if SECRET_TEXT.search(line) or (suffix not in (".py", ".md") and SECRET_KEY.search(line)):
            raise UsageError(
                f"{file}, line {number}, holds what looks like an access token or a private key: remove it"
            )


def check_model(folder: Path, files: dict[str, Path]) -> None:
    """Whether others can open what is in the files.

    Raises:
        UsageError: no model, no weights, or a config.json that promises code which is not there.
    """
    for name in ("config.json", "README.md", "preprocessor_config.json"):
        if name not in files:
            raise UsageError(f"{folder} holds no {name}: export_dir is the export/ folder of a run, or a run of folds")
    for name in [name for name in files if Path(name).name == "config.json"]:
        parent = Path(name).parent
        try:
            config = json.loads(files[name].read_text())
        except json.JSONDecodeError as error:
            raise UsageError(f"{files[name]} is no JSON: {error}") from error
        if not any(Path(other).parent == parent and other.endswith(".safetensors") for other in files):
            raise UsageError(f"{files[name]} has no .safetensors file beside it")
        architecture = (config.get("architectures") or ["none"])[0]
        auto_map = config.get("auto_map") or {}
        if architecture in ("ViTModel", "ViTForImageClassification"):
            stale = [key for key in config if key == "auto_map" or key.startswith(("glcm_", "decoder_"))]
            if stale:
                raise UsageError(
                    f"{files[name]}: a {architecture} has no use for {', '.join(stale)}, left over from pretraining: "
                    "delete them, or export anew with recipes/finetune.py"
                )
        for reference in auto_map.values():
            code = (parent / f"{reference.split('--')[-1].split('.')[0]}.py").as_posix()
            if code not in files:
                raise UsageError(f"{files[name]}: auto_map names {reference}, but {folder / code} is not there")


def render_card(text: str, repo_id: str, results: str | None = None, **metadata: Any) -> str:
    """The card with the repository's address in its snippets, and more metadata.

    Args:
        text: of README.md.
        repo_id: OWNER/NAME.
        results: replaces the part between the marks of the results.
        metadata: fields of the YAML header; those that are `None` stay as they are.
    """
    card = ModelCard(text, ignore_metadata_errors=False)
    for name, value in metadata.items():
        if value is not None:
            setattr(card.data, name, value)
    if results is not None:
        card.text = RESULTS.sub(lambda _: f"<!-- results -->\n{results}\n<!-- end of results -->", card.text)
    return card.content.replace(ADDRESS, repo_id)


def open_repository(publication: Publication) -> None:
    """Create the repository, or see that the existing one is ours and as asked for, before anything is sent.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    with _explained(publication):
        api, where = HfApi(), publication.where
        if not publication.create_pr:
            sdk = None
            if publication.repo_type == "space":
                sdk = RepoCard(_text(publication.files["README.md"])).data.get("sdk")
            # Not False: that would be public even where the owner's default is private.
            private = publication.private or None
            _persist(
                "create the repository",
                lambda: api.create_repo(**where, private=private, exist_ok=True, space_sdk=sdk),
            )
            # One that exists may have been "created" by a token that can only read it.
            _persist("ask for the right to write", lambda: api.auth_check(**where, write=True))
        base = _persist("look for the branch", lambda: _base(api, publication))
        info = _persist("look at the repository", lambda: api.repo_info(**where, revision=base))
        if publication.private and not info.private:
            raise UsageError(
                f"{publication.address} exists and is public, and private was asked for: make it private in its "
                "settings, or take another repo_id"
            )
        if not publication.replace:
            _persist("look at the files", lambda: _there_and_ours(api, publication, base))
            _refuse_other_kind(publication, info)
        if publication.revision != base:
            _persist(
                "create the branch", lambda: api.create_branch(**where, branch=publication.revision, exist_ok=True)
            )
        if publication.gated:
            _persist("set the gate", lambda: api.update_repo_settings(**where, gated=publication.gated))


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


def send(publication: Publication, message: str) -> dict[str, str]:
    """Send the files in one commit. Again after an interruption, it goes on, without a second commit.

    Args:
        publication: what and how.
        message: of the commit.

    Returns:
        `address`, `commit` (SHA), and `pull_request` where one was asked for.

    Raises:
        UsageError: what is wrong, and how to go on. Nothing on this machine is changed.
    """
    open_repository(publication)
    with _explained(publication):
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
            publication.again = f"first see in {publication.address}/discussions whether the pull request is there"
            done = commit()
            if done.pr_url is None:
                raise UsageError(f"{publication.address} holds these very files: there is nothing to propose")
            return {"address": publication.address, "commit": done.oid, "pull_request": done.pr_url}
        done = _persist("upload", commit)
        return {"address": publication.address, "commit": done.oid}


def finish(publication: Publication, commit: str) -> str:
    """Tag the commit, and list the repository in the collection; returns the tag.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    with _explained(publication):
        api = HfApi()
        tag = _tag(api, publication, commit)
        if publication.collection:
            _persist("list it in the collection", lambda: _collect(api, publication))
        return tag


def _refuse_other_kind(publication: Publication, info: ModelInfo) -> None:
    """A classifier in the place of an encoder would break whoever uses that one."""
    ours = publication.files.get("config.json")
    if publication.repo_type != "model" or ours is None:
        return
    there, here = (info.config or {}).get("architectures"), json.loads(_text(ours)).get("architectures")
    if there and there != here:
        raise UsageError(f"{publication.address} holds a {there}, and this is a {here}: take another repo_id")


def _text(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")


def _tag(api: HfApi, publication: Publication, commit: str) -> str:
    where = publication.where
    refs = _persist("list the tags", lambda: api.list_repo_refs(**where))
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
    _persist("set the tag", lambda: api.create_tag(**where, tag=name, revision=commit, exist_ok=True))
    return name


def _collect(api: HfApi, publication: Publication) -> None:
    owner = publication.repo_id.split("/")[0]
    collection = api.create_collection(publication.collection, namespace=owner, exists_ok=True)
    api.add_collection_item(
        collection.slug, item_id=publication.repo_id, item_type=publication.repo_type, exists_ok=True
    )


def verify(publication: Publication, revision: str, local: Path) -> list[str]:
    """Load it from the Hub in a fresh process with an empty cache, and compare it with the folder.

    Args:
        publication: what was sent: a model, which must answer as that of the folder, or a data set, of which every
            row must be as there.
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
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise UsageError(
            f"{publication.address} is published (commit {revision}, which gets no tag), but does not load back: "
            f"{last[-1]}. The folder {publication.folder} is untouched; {publication.again}"
        )
    return done.stdout.splitlines()


def push_asked_for(args: TrainingArguments, folder: Path) -> Publication | None:
    """What `push_to_hub` of a recipe asks for; `None` if it is not set.

    Trainer's own way is switched off: it sends pickles, checkpoints, and a card over ours.

    Args:
        args: `push_to_hub` is set to false.
        folder: the export of the run.

    Raises:
        UsageError: `hub_model_id` or `hub_strategy` is not allowed, or a token is among the arguments.
    """
    if not args.push_to_hub:
        return None
    if args.hub_token is not None:
        raise UsageError("hub_token: a token has no place in a recipe; run `hf auth login`, or set HF_TOKEN")
    check_repo_id(args.hub_model_id, "hub_model_id")
    allowed = (HubStrategy.END, HubStrategy.EVERY_SAVE)
    if args.hub_strategy not in allowed:
        names = ", ".join(strategy.value for strategy in allowed)
        raise UsageError(f"hub_strategy must be one of {names}, got {args.hub_strategy.value!r}")
    args.push_to_hub = False
    revision = args.hub_revision or "main"
    return Publication(folder, args.hub_model_id, private=bool(args.hub_private_repo), revision=revision)


def take_export(publication: Publication) -> None:
    """Fill in the files of a run's export.

    Raises:
        UsageError: a file that must not be published, or a model that others could not open.
    """
    files, publication.left_out = files_of(publication.folder)
    check_model(publication.folder, files)
    publication.files = files | {"README.md": render_card(_text(files["README.md"]), publication.repo_id).encode()}


def publish(publication: Publication, message: str, local: Path | None = None) -> Iterator[str]:
    """Send, load back, and only then tag; what to tell the user, a line each. See `send`, `verify` and `finish`.

    Args:
        publication: what and how.
        message: of the commit.
        local: the folder of the model or data set that was sent; `None` for what is not loaded back.
    """
    done = send(publication, message)
    for name, value in done.items():
        yield f"{name:<12} {value}"
    if local is not None:
        for line in verify(publication, done["commit"], local):
            yield f"verified     {line}"
    if not publication.create_pr:
        yield f"tag          {finish(publication, done['commit'])}"


def publish_export(publication: Publication, message: str) -> Iterator[str]:
    """`publish` of the export at the end of a run, which the same command would not repeat."""
    publication.again = f"to go on: {publication.command}"
    take_export(publication)
    yield from publish(publication, message, publication.folder)


class PublishEverySave(TrainerCallback):
    """Publish at every checkpoint, for `hub_strategy: every_save`. A failure is told and does not stop the training.

    Args:
        publication: where.
        write_export: writes the export of the model as it is; called in every process.
    """

    def __init__(self, publication: Publication, write_export: Callable[[], None]):
        self.publication, self.write_export = publication, write_export

    def on_save(self, args, state, control, **kwargs) -> None:
        self.publication.again = "the next checkpoint is tried again"
        try:
            self.write_export()
            if state.is_world_process_zero:
                take_export(self.publication)
                send(self.publication, f"Step {state.global_step}")
        except (UsageError, OSError, SafetensorError) as error:  # the last: of a full disk, too
            logger.warning("step %d is not published: %s", state.global_step, error)


def _persist(what: str, call: Callable[[], _T]) -> _T:
    """Call again, after a while, where the server or the connection failed; the client does not do so for commits."""
    begun = time.monotonic()
    for wait in WAITS:
        get_session().timeout = TIMEOUT  # of the client as it is now: after some errors there is a new one
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            cause = error if isinstance(error, HTTPError) else error.__cause__  # of the upload of a large file
            if not isinstance(cause, HTTPError):
                raise
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if (status is not None and status != 429 and status < 500) or time.monotonic() - begun > PATIENCE:
                raise
            logger.warning("%s: %s; trying again in %d s", what, status or type(cause).__name__, wait)
            time.sleep(wait)
    return call()


class _explained:  # noqa: N801 - reads as a statement
    """Turn what the client raises into one message that tells what to do."""

    def __init__(self, publication: Publication):
        self.publication = publication

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if error is None or isinstance(error, UsageError):
            return
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = _reason(cause, self.publication)
        if reason is None:
            return
        raise UsageError(
            f"{self.publication.repo_id}: {reason}. {self.publication.folder} is untouched; {self.publication.again}"
        ) from error


def _reason(error: BaseException, publication: Publication) -> str | None:
    endpoint = HfApi().endpoint
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no access token: run `hf auth login`, or set HF_TOKEN"
    if status == 401 and get_token() is None:
        return "there is no access token: run `hf auth login`, or set HF_TOKEN"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the access token is not valid (any more): run `hf auth login`, or set HF_TOKEN"
    if status == 403 or isinstance(error, GatedRepoError):
        return f"your access token may not write to {publication.address}: it needs the role write, for this owner"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {publication.revision!r}"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"there is no {publication.address}, or your access token may not see it"
    if status == 409:
        return f"the name is taken or the repository is busy ({_said(error)})"
    if status is not None and (status == 429 or status >= 500):
        return f"{endpoint} answers {status} again and again: try later"
    if isinstance(error, HfHubHTTPError):
        return f"{endpoint} refuses it: {_said(error)}"
    if isinstance(error, HTTPError) and "Timeout" in type(error).__name__:
        return f"{endpoint} does not answer ({type(error).__name__} after {TIMEOUT:g} s): try later"
    if isinstance(error, HTTPError | ConnectionError):
        return f"{endpoint} cannot be reached ({type(error).__name__}: {_said(error)}); see whether there is a network"
    if isinstance(error, ValueError):  # of the card
        return str(error)
    if isinstance(error, RuntimeError):  # of the library that uploads large files
        return f"the upload failed ({error})"
    return None


def _said(error: BaseException) -> str:
    return (getattr(error, "server_message", None) or (str(error).splitlines() or ["no message"])[-1]).strip()


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
    yield _text(publication.files["README.md"])


def _outlook(publication: Publication) -> Iterator[str]:
    """What would become of the files that are there, as far as that can be seen without a token or a network."""
    get_session().timeout = TIMEOUT
    api = HfApi()
    try:
        gone, overwritten = _changes(api, publication, _base(api, publication))
    except (HTTPError, ConnectionError) as error:
        yield f"  what is there cannot be seen: {_reason(error, publication) or error}"
        return
    for name in gone:
        yield f"  would delete  {name}"
    for name in overwritten:
        yield f"  overwrites    {name}, which others have written or changed"
