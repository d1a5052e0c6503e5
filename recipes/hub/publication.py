"""What goes to the Hub, and how: a plain record that is filled in, sent and tagged elsewhere in this room."""

import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

ONNX_FILE = "onnx/model.onnx"  # where optimum and transformers.js look for it in a repository
SAME_COMMAND = "the same command goes on where this one stopped"  # how to go on after a failure

for client in ("httpx", "httpx2"):
    logging.getLogger(client).setLevel(logging.WARNING)  # otherwise a line a request


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


def text_of(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")
