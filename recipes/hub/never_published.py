"""What must never be published: secrets, pickles, links, files that are not part of an export."""

import fnmatch
import json
import logging
import re
from pathlib import Path

from commandline import UsageError, model_inside
from images.pseudonyms import PRIVATE, STOPPED
from output_folder import WRITTEN_LIST, not_ours

logger = logging.getLogger("publish")

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


def files_of(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a folder that may be published, and why each other one is left out.

    What others put there is published by the same rules as what we wrote, with a warning that names it where a list
    of ours tells (in an export, and in the folders of a data set).

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
        if file.is_dir() or file.name == WRITTEN_LIST:
            continue
        hidden = any(part.startswith(".") for part in parts) and name not in PLAIN_NAMES
        if parts[0] == STOPPED:
            left_out[name] = "of a preparation that was stopped"
        elif PRIVATE in parts:
            left_out[name] = "the original names of files and patients: never published"
        elif hidden or NOT_OURS.intersection(parts) or any(part.startswith("checkpoint-") for part in parts):
            left_out[name] = "not part of an export"
        elif file.suffix.lower() not in SUFFIXES and file.name not in PLAIN_NAMES:
            left_out[name] = f"files {file.suffix or 'without a suffix'} are not published (a pickle can run code)"
        else:
            refuse_secret_text(file)
            files[name] = file
    theirs = not_ours(folder)
    added = [name for name, file in files.items() if any(file.is_relative_to(path) for path in theirs)]
    if added:
        logger.warning("%s: published too, though not written by the recipe: %s", folder, ", ".join(added))
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
            instead = model_inside(folder)
            if instead is not None:
                raise UsageError(f"export_dir {str(folder)!r} {instead}")
            raise UsageError(f"{folder} holds no {name}: export_dir is the export/ folder of a run, or a run of folds")
    for name in [name for name in files if Path(name).name == "config.json"]:
        parent = Path(name).parent
        try:
            config = json.loads(files[name].read_text())
        except json.JSONDecodeError as error:
            raise UsageError(f"{files[name]} is not valid JSON: {error}") from error
        if not any(Path(other).parent == parent and other.endswith(".safetensors") for other in files):
            raise UsageError(f"{files[name]} has no .safetensors file beside it")
        architecture = (config.get("architectures") or ["none"])[0]
        auto_map = config.get("auto_map") or {}
        if architecture in ("ViTModel", "ViTForImageClassification", "BeitForImageClassification"):
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
