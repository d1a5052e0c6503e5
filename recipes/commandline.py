"""Command line of the recipes: a YAML file sets the defaults, options win, an unknown key is an error."""

import difflib
import json
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

logger = logging.getLogger(__name__)


class UsageError(ValueError):
    """A mistake in what the user asked for; its message is all that they need to see."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The usual print of over a hundred options would bury the one line that matters.
        raise UsageError(f"{message} (--help lists all options)")


def parse_args(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None):
    """Fill dataclasses from `--config FILE.yaml` and from options, which win over the file.

    Args:
        dataclass_types: one dataclass for each kind of argument; field names are unique among them.
        argv: the command line without the program's name; `sys.argv[1:]` if None.
        description: shown by `--help`.

    Returns:
        A tuple of instances, in the order of `dataclass_types`.

    Raises:
        UsageError: on an unknown key or option, or a value of the wrong type; names the file and the field.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    config_parser = ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    config_file, options = config_parser.parse_known_args(arguments)
    parser = _Parser(
        dataclass_types,
        description=description,
        allow_abbrev=False,
        epilog="--config FILE.yaml sets defaults for any of these; options on the command line win.",
    )
    defaults: list[str] = []
    if config_file.config is not None:
        known = {action.dest: action for action in parser._actions if action.dest != "help"}
        values = _read_yaml(config_file.config)
        for key, value in values.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"{config_file.config}: unknown key {key!r}{hint} (--help lists what is allowed)")
            given = _as_options(key, value, several=known[key].nargs in ("+", "*"))
            try:
                parser.parse_args(given)
            except UsageError as error:
                # HfArgumentParser knows no required fields here, so only this key can be at fault.
                raise UsageError(f"{config_file.config}: {key}: {value!r} is not allowed: {error}") from None
            defaults += given
    *parsed, unknown = parser.parse_args_into_dataclasses(defaults + options, return_remaining_strings=True)
    if unknown:
        raise UsageError(f"unknown option or value: {' '.join(unknown)} (--help lists all options)")
    return tuple(parsed)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"--config {path}: must hold `key: value` lines, found a {type(values).__name__}")
    return values or {}


def _as_options(key: str, value: Any, several: bool) -> list[str]:
    """The command-line form of a YAML entry, so that both go through the same checks of type."""
    if value is None:
        return []
    if several:
        return [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return [f"--{key}={json.dumps(value) if isinstance(value, list | dict) else value}"]


def run_main(
    check: Callable[..., Callable[[], None] | None],
    argument_classes: Sequence[type],
    argv: Sequence[str] | None,
    description: str | None,
    mistakes: tuple[type[Exception], ...] = (UsageError,),
) -> None:
    """Run a recipe: parse, check, work. A mistake of the user is one line on standard error and exit status 1.

    Args:
        check: called with the parsed dataclasses; every ValueError or OSError that it raises is a mistake in what was
            asked for. Returns the work to do, if any is left.
        argument_classes: as for `parse_args`.
        argv: as for `parse_args`.
        description: as for `parse_args`.
        mistakes: errors of the work that are meant for the user; any other is a fault of ours and shows where.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        work = check(*parse_args(argument_classes, argv, description))
    except (ValueError, OSError, StrictDataclassError) as error:
        logger.debug("where it was found", exc_info=True)
        sys.exit(f"error: {error}")
    if work is None:
        return
    try:
        work()
    except mistakes as error:
        sys.exit(f"error: {error}")


def option(default: Any, help: str) -> Any:
    """A field of an argument class with its help text."""
    return field(default=default, metadata={"help": help})


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


def check_model_name(name_or_path: str | None) -> None:
    """See that a model can be meant by it, so that a mistyped folder is called one.

    Raises:
        UsageError: it is no folder here, and the Hub allows no such id.
    """
    if name_or_path is None or Path(name_or_path).is_dir():
        return
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        raise UsageError(
            f"model_name_or_path {name_or_path!r} is neither a folder here nor an id on the Hub (OWNER/NAME)"
        ) from error
