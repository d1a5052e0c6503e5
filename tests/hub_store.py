"""What the tests' Hub keeps: users, repositories, commits, files, and the faults that it was asked for."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime

import yaml
from aiohttp import web
from huggingface_hub.repocard import REGEX_YAML_BLOCK

LARGE_DATA_NAMES = "*.bmp *.gif *.jpeg *.jpg *.png *.tiff *.webp *.flac *.mp3 *.wav *.mp4".split()


# What a card may say, as far as the tests need it.
LICENSES = set(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause "
    "bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 "
    "epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c "
    "ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr unknown".split()
)


TASKS = set(
    "image-classification image-feature-extraction image-segmentation image-to-image image-to-text object-detection "
    "depth-estimation mask-generation unconditional-image-generation zero-shot-image-classification "
    "zero-shot-object-detection keypoint-detection feature-extraction text-classification text-generation "
    "visual-question-answering tabular-classification tabular-regression other".split()
)


SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"}


COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


# The Hub infers the task of a model whose card names none; only the classes that the tests publish.
TASK_OF_CLASS = {"ViTForImageClassification": "image-classification", "ViTModel": "image-feature-extraction"}


class Refusal(Exception):
    """An answer that is an error: `code` is the X-Error-Code from which the clients choose their exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: object):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more

    def answer(self) -> web.Response:
        # A header is one line; a message of the YAML parser has several.
        headers = {"X-Error-Message": " ".join(self.message.split())}
        headers |= {"X-Error-Code": self.code} if self.code else {}
        headers |= {"X-Repo-Commit": str(self.more["sha"])} if "sha" in self.more else {}
        return web.json_response({"error": self.message} | self.more, status=self.status, headers=headers)


@dataclass(frozen=True)
class Blob:
    sha256: str
    size: int
    large: bool
    oid: str  # of the git blob; of the pointer for a large file
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    files: dict[str, Blob]
    parent: str | None
    author: str
    description: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


@dataclass
class Repo:
    id: str
    type: str
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)  # who may read the files of a gated one, besides its owner
    history: dict[str, Commit] = field(default_factory=dict)  # by sha
    branches: dict[str, str] = field(default_factory=dict)  # name -> sha; pull requests are refs/pr/1, refs/pr/2, ...
    tags: dict[str, str] = field(default_factory=dict)
    sdk: str | None = None
    variables: dict[str, str] = field(default_factory=dict)  # of a Space

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.history:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[sha]

    def add(self, branch: str, title: str, files: dict[str, Blob], author: str, description: str = "") -> Commit:
        parent = self.branches.get(branch)
        named = [parent, title, len(self.history), self.id, sorted((path, blob.oid) for path, blob in files.items())]
        sha = hashlib.sha1(json.dumps(named).encode()).hexdigest()
        self.history[sha] = Commit(sha, title, files, parent, author, description)
        self.branches[branch] = sha
        return self.history[sha]

    def line(self, commit: Commit) -> list[Commit]:
        """A commit and all before it, newest first."""
        found = [commit]
        while found[-1].parent:
            found.append(self.history[found[-1].parent])
        return found


@dataclass
class User:
    name: str
    role: str
    orgs: tuple[str, ...] = ()


@dataclass
class Fault:
    kind: str  # fail, cut or lose
    method: str
    path: str
    times: int | None  # None: again and again
    every: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0
    seen: int = 0

    def due(self) -> bool:
        self.seen += 1
        if self.times == 0 or self.seen % self.every:
            return False
        if self.times is not None:
            self.times -= 1
        return True


def card_data(text: str) -> dict:
    """The metadata of a card; a `Refusal` if its YAML is broken."""
    block = REGEX_YAML_BLOCK.search(text)
    try:
        data = yaml.safe_load(block.group(2)) if block else {}
    except yaml.YAMLError as error:
        raise Refusal(400, f"Invalid metadata in README.md: {error}", errors=[{"message": str(error)}]) from error
    return json.loads(json.dumps(data or {}, default=str))  # dates become text, as in the Hub's answers


def check_card(text: str, repo_type: str) -> list[str]:
    """Warnings; a `Refusal` with all errors."""
    data, errors = card_data(text), []

    def known(name: str, allowed: set[str]) -> None:
        given = data.get(name, [])
        errors.extend(
            f'"{name}" must be one of [{", ".join(sorted(allowed))}], got {value!r}'
            for value in (given if isinstance(given, list) else [given])
            if value not in allowed
        )

    known("license", LICENSES | {"other"})
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required when "license" is "other"')
    if repo_type == "model":
        known("pipeline_tag", TASKS)
        for number, model in enumerate(data.get("model-index") or []):
            if not model.get("name"):
                errors.append(f'"model-index[{number}].name" is required')
            for index, result in enumerate(model.get("results") or []):
                place = f"model-index[{number}].results[{index}]"
                required = {"task": ("type",), "dataset": ("type", "name")}
                errors.extend(
                    f'"{place}.{part}.{name}" is required'
                    for part, names in required.items()
                    for name in names
                    if not (result.get(part) or {}).get(name)
                )
                if not all("type" in metric and "value" in metric for metric in result.get("metrics") or [{}]):
                    errors.append(f'"{place}.metrics" must be a list of entries with "type" and "value"')
    elif repo_type == "dataset":
        known("task_categories", TASKS)
        known("size_categories", SIZES)
    else:
        known("sdk", {"gradio", "docker", "static"})
        known("colorFrom", COLOURS)
        known("colorTo", COLOURS)
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    if errors:
        raise Refusal(400, "; ".join(errors), errors=[{"message": error} for error in errors])
    return [] if data else ["empty or missing yaml metadata in repo card"]
