"""Command line of the recipes: a YAML file sets the defaults, options win, an unknown key is an error.

Every script imports this before it knows what it is asked, so nothing that needs torch is imported here.
"""

import ast
import difflib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
import time
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from functools import partialmethod
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub.errors import HFValidationError, StrictDataclassClassValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from tqdm import tqdm
from transformers.hf_argparser import HfArgumentParser, string_to_bool

# A file gets a state of a progress bar every half minute, and not ten in a second. tqdm reads the variable when it is
# imported, so that is for the processes that are started from here.
if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
    os.environ["TQDM_MININTERVAL"] = "30"
    tqdm.__init__ = partialmethod(tqdm.__init__, mininterval=30)

logger = logging.getLogger(__name__)
ABOUT_CONFIG = "--config FILE.yaml sets defaults for any of these; options on the command line win."
HELP_ALL = "--help_all"
# What other trainings call it; by spelling alone, other options of ours are nearer.
ALIASES = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr": "learning_rate",
    "num_epochs": "num_train_epochs",
    "train_batch_size": "per_device_train_batch_size",
}
TOLD_TO_END = threading.Event()


class UsageError(ValueError):
    """A mistake in what the user asked for; its message is all that they need to see."""


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and shows each option once, with its default where it has one."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: Action) -> str:
        names = action.option_strings  # the others of it are spellings with hyphens
        if action.nargs == 0:
            return ", ".join(names)
        return f"{names[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        names = {int: "N", float: "X", string_to_bool: "true|false"}
        return names.get(action.type, "TEXT")


class _Parser(HfArgumentParser):
    def __init__(self, dataclass_types: Sequence[type], description: str | None, epilog: str):
        super().__init__(
            dataclass_types,
            usage="%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

        for action in self.known.values():
            if action.type is string_to_bool and action.nargs is None:  # of an option that may be left out, too
                action.nargs, action.const = "?", True

    @property
    def known(self) -> dict[str, Action]:
        """The options by name; of one that has an opposite (--no_NAME), the option itself."""
        return {action.dest: action for action in reversed(self._actions) if action.dest != "help"}

    def error(self, message: str) -> NoReturn:
        # The usual print of over a hundred options would bury the one line that matters.
        raise UsageError(f"{message} ({HELP_ALL} lists all options)")

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, (), ())
        formatter.add_text(self.description)
        left = self.known
        groups: dict[str, list[str]] = {}
        for dataclass_type in self.dataclass_types:
            for title, names in getattr(dataclass_type, "GROUPS", {}).items():
                groups.setdefault(title, []).extend(names)
        for title, names in groups.items():
            formatter.start_section(title)
            formatter.add_arguments([left.pop(name) for name in names])
            formatter.end_section()
        formatter.start_section("more options" if groups else "options")
        formatter.add_arguments([left[name] for name in reversed(left)])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def answer_early(
    dataclass_types: Sequence[type], argv: Sequence[str] | None, description: str | None, more: str
) -> None:
    """End the program with the help on our own options, or at one that there is not; before torch is imported.

    Args:
        dataclass_types: the options beside those of transformers' Trainer, which are taken too.
        argv: as for `parse_args`.
        description: as for `parse_args`.
        more: what is said of the options that are not listed.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = _Parser(dataclass_types, description, f"{more}\n\n{ABOUT_CONFIG}")
    if {"-h", "--help"} & set(words):
        parser.print_help()
        sys.exit(0)
    options = {action.dest for action in parser._actions} | _options_of_trainer() | {"config", HELP_ALL[2:]}
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name.removeprefix("no_") not in options:
            near = nearest(name, options, "--")
            sys.exit(f"error: unknown option or value: {word}{near} ({HELP_ALL} lists all options)")


def _options_of_trainer() -> set[str]:
    """The names of the fields of `TrainingArguments`, by its source: to import it takes torch."""
    source = Path(importlib.util.find_spec("transformers.training_args").origin).read_text()
    (found,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == "TrainingArguments")
    return {field.target.id for field in found.body if isinstance(field, ast.AnnAssign)}


def parse_args(dataclass_types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None):
    """Fill dataclasses from `--config FILE.yaml` and from options, which win over the file.

    Args:
        dataclass_types: one dataclass for each kind of argument; field names are unique among them. One that has a
            `GROUPS`, titles with the names of fields, is listed by these in the help.
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
    parser = _Parser(dataclass_types, description, ABOUT_CONFIG)
    known = parser.known
    if HELP_ALL in arguments:
        parser.print_help()
        sys.exit(0)
    defaults: list[str] = []
    if config_file.config is not None:
        values = _read_yaml(config_file.config)
        for key, value in values.items():
            if key not in known:
                raise UsageError(
                    f"{config_file.config}: unknown key {key!r}{nearest(key, known)} ({HELP_ALL} lists all keys)"
                )
            given = _as_options(key, value, several=known[key].nargs in ("+", "*"))
            try:
                parser.parse_args(given)
            except UsageError as error:
                # HfArgumentParser knows no required fields here, so only this key can be at fault.
                raise UsageError(f"{config_file.config}: {key}: {value!r} is not allowed: {error}") from None
            defaults += given
    # Before the dataclasses are made: a mistyped option is not one that is missing.
    _refuse_unknown(parser.parse_known_args(defaults + options)[1], known)
    *parsed, unknown = parser.parse_args_into_dataclasses(defaults + options, return_remaining_strings=True)
    _refuse_unknown(unknown, known)  # of a file of arguments beside the script
    return tuple(parsed)


def _refuse_unknown(unknown: Sequence[str], known: dict[str, Action]) -> None:
    if unknown:
        name = unknown[0].partition("=")[0].lstrip("-").replace("-", "_")
        raise UsageError(
            f"unknown option or value: {' '.join(unknown)}{nearest(name, known, '--')} ({HELP_ALL} lists all options)"
        )


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: what may have been meant, or nothing."""
    others = {alias: option for alias, option in ALIASES.items() if option in known}
    close = difflib.get_close_matches(name, [*known, *others], n=1)
    return f"; did you mean {prefix}{others.get(close[0], close[0])}?" if close else ""


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

    So is an interrupt (Ctrl-C), with exit status 130.

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
        try:
            work = check(*parse_args(argument_classes, argv, description))
        except (ValueError, OSError, StrictDataclassError) as error:
            logger.debug("where it was found", exc_info=True)
            sys.exit(f"error: {said(error)}")
        if work is not None:
            work()
    except mistakes as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        resumes = any(hasattr(arguments, "resume_from_checkpoint") for arguments in argument_classes)
        hint = "; --resume_from_checkpoint last goes on from the last checkpoint, if there is one" if resumes else ""
        sys.stderr.write(f"\ninterrupted: what was saved is kept{hint}\n")
        sys.exit(128 + signal.SIGINT)


def said(mistake: Exception) -> str:
    """The message; that of a strict dataclass in one line, without the name of the function that checks it."""
    if isinstance(mistake, StrictDataclassClassValidationError):
        return str(mistake.__cause__)
    return " ".join(str(mistake).split()) if isinstance(mistake, StrictDataclassError) else str(mistake)


@contextmanager
def ending_children() -> Iterator[None]:
    """Where this process is told to end (SIGTERM, of `kill`, a scheduler or a container; Ctrl-C), so are its children.

    It waits for them: their locks are free once it has ended. Who starts another in a thread looks at `TOLD_TO_END`.
    """
    import psutil  # here: not for those who only read options

    def end(number: int, frame: object) -> NoReturn:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # once is enough
        TOLD_TO_END.set()
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()
                while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.1)  # not `wait`: the exit code is for who started it
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        TOLD_TO_END.clear()


def option(default: Any, help: str, left_out: Any = None) -> Any:
    """A field of an argument class with its help text; `left_out` is what holds where the default is `None`."""
    return field(default=default, metadata={"help": help if left_out is None else f"{help} (default: {left_out})"})


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


def model_inside(folder: Path) -> str | None:
    """What a folder is that holds the models of runs and is none itself, and which of them to give.

    Returns:
        The end of a sentence that begins with the folder; `None` where it is a model, or holds none.
    """
    if (folder / "config.json").is_file():
        return None
    if (folder / "export" / "config.json").is_file():
        return f"is the output of a run: give its model, {folder / 'export'}"
    kinds = {"finetune": "the classifier", "pretrain": "the encoder"}
    places = {"fold_*/": "is the output of cross_validate.py: give, of one fold,", "": "holds runs: give"}
    for parent, what in places.items():
        found = {}
        for step, kind in kinds.items():
            exports = [file.parent for file in folder.glob(f"{parent}{step}/export/config.json")]
            if exports:
                found[kind] = min(exports, key=lambda export: (len(str(export)), str(export)))  # fold_2 before fold_10
        if found:
            return f"{what} {' or '.join(f'{kind} {export}' for kind, export in found.items())}"
    return None


def check_model_name(name_or_path: str | None, subfolder: str = "") -> None:
    """See that a model can be meant by it, so that a mistyped folder is called one.

    Args:
        name_or_path: Hub id or folder.
        subfolder: `--model_subfolder`, which may choose a model of a run.

    Raises:
        UsageError: it is no folder here, and the Hub allows no such id; or it is a folder around the model.
    """
    if name_or_path is None:
        return
    if Path(name_or_path).is_dir():
        instead = None if subfolder else model_inside(Path(name_or_path))
        if instead is not None:
            raise UsageError(f"model_name_or_path {name_or_path!r} {instead}")
        return
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        raise UsageError(
            f"model_name_or_path {name_or_path!r} is neither a folder here nor an id on the Hub (OWNER/NAME)"
        ) from error
