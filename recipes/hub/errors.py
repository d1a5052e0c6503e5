"""What the Hub's answers mean, in one line, and which are worth another try."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from commandline import UsageError
from hub.publication import SAME_COMMAND, Publication

logger = logging.getLogger("publish")

WAITS = (1, 2, 4, 8, 16)  # seconds before each new try
TIMEOUT = 60.0  # seconds without a byte; the client itself would wait for ever
PATIENCE = 100.0  # seconds after which there is no new try
_T = TypeVar("_T")


def with_retries(what: str, call: Callable[[], _T]) -> _T:
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


class explained:  # noqa: N801 - reads as a statement
    """Turn what the client raises into one message that tells what to do."""

    def __init__(self, publication: Publication, how_to_go_on: str = SAME_COMMAND):
        self.publication, self.how_to_go_on = publication, how_to_go_on

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if error is None or isinstance(error, UsageError):
            return
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = reason_of(cause, self.publication)
        if reason is None:
            return
        raise UsageError(
            f"{self.publication.repo_id}: {reason}. {self.publication.folder} is untouched; {self.how_to_go_on}"
        ) from error


def reason_of(error: BaseException, publication: Publication) -> str | None:
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
