"""One folder to the Hub in one commit; what can go wrong on the way is retried, or said in one sentence."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..checkpoints.lock import FILE as LOCK
from . import readme
from .privacy import check_no_secrets

logger = logging.get_logger(__name__)
httpx = importlib.import_module("httpx" if huggingface_hub.__version__.startswith("1.") else "httpx2")

ATTEMPTS = 4
PAUSES = (1.0, 4.0, 10.0)  # seconds between attempts
_MAY_NOT_WRITE = (
    "the token may not write to {}: use one with the right to write, choose a name of your own, or propose the change "
    "with `hgkd publish --create_pr`"
)


class PushError(RuntimeError):
    """A push that did not come about; the message is one sentence, and the folder is as it was."""


@dataclass(frozen=True)
class PushOptions:
    """Where and how a folder is pushed.

    Attributes:
        private: of a repository that this push creates; an existing one keeps its visibility.
        gated: `"auto"` or `"manual"`: who wants to read it has to ask; None leaves it as it is.
        revision: branch, created if need be; None = main.
        create_pr: propose the commit as a pull request.
        tag: name of a git tag to put on the commit.
        overwrite: push over another model too (see `push_student`).
        message: the commit's title.
        repo_type: of the repository.
        token: of the Hub; None = the one that is logged in.
    """

    private: bool | None = None
    gated: Literal["auto", "manual"] | None = None
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    overwrite: bool = False
    message: str = "Push a student trained with hgkd_hf"
    repo_type: Literal["model", "dataset"] = "model"
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.create_pr and (self.gated or self.tag):
            raise ValueError("a pull request neither gates the repository nor gets a tag: leave gated and tag out.")

    def flags(self) -> list[str]:
        """The same on the command line of `hgkd publish`, but the token, which no command should hold."""
        found = []
        for name, value in asdict(self).items():
            if value and value != getattr(PushOptions, name) and name not in ("token", "repo_type"):
                found += [f"--{name}"] if value is True else [f"--{name}", value]
        return found


@dataclass(frozen=True)
class Head:
    """What a repository holds at the commit that a push builds on.

    Attributes:
        api: the client.
        repo_id, repo_type: of the repository.
        commit: its hash.
        files: their paths.
    """

    api: HfApi = field(repr=False)
    repo_id: str
    repo_type: str
    commit: str
    files: frozenset[str]

    @classmethod
    def of(cls, api: HfApi, repo_id: str, options: PushOptions) -> Head:
        """The head of the branch that is pushed to; of main, where that branch does not exist yet.

        Raises:
            HfHubHTTPError, OSError: of the client.
        """
        kind = options.repo_type
        try:
            info = api.repo_info(repo_id, revision=options.revision, repo_type=kind)
        except RevisionNotFoundError:
            info = api.repo_info(repo_id, repo_type=kind)
        files = frozenset(sibling.rfilename for sibling in info.siblings or [])
        return cls(api, repo_id, kind, info.sha, files)

    def read(self, name: str) -> Path | None:
        """A file, None if it has none of this name.

        Raises:
            HfHubHTTPError, OSError: of the client.
        """
        if name not in self.files:
            return None
        try:
            kind = {"revision": self.commit, "repo_type": self.repo_type}
            return Path(self.api.hf_hub_download(self.repo_id, name, **kind))
        except LocalEntryNotFoundError as error:  # the network, not the file
            raise error.__cause__ or error from None

    def readme(self) -> str | None:
        """The README, None if it has none.

        Raises:
            ValueError: it is not UTF-8.
        """
        path = self.read(readme.FILE)
        return path and readme.read(path, f"of {self.repo_id} on the Hub")


def files_of(folder: Path) -> dict[str, Path]:
    """What a push sends: path in the repository -> file."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith((".cache/", ".git/")) and name != LOCK}


def push_folder(
    folder: str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    write_readme: Callable[[Head], str] | None = None,
    more_files: dict[str, Path] | None = None,
    again: str = "What is here is complete: push it again.",
) -> CommitInfo:
    """Push a folder as one commit; a README on the Hub is merged into, files that are there already are not sent.

    Repeating it resumes a push that failed: what arrived is kept, and without a change nothing is committed.

    Args:
        folder: what is pushed.
        repo_id: `user/name`, or `name` for one's own.
        options: see `PushOptions`.
        write_readme: what the repository holds -> the README to push; also written into `folder`. Default: the
            folder's own, merged into the Hub's.
        more_files: files from elsewhere, by their path in the repository.
        again: what the sentence of a failure says of how to resume.

    Raises:
        PushError: it did not come about.
        ValueError: the name is none, a file holds a secret of this machine, or the README is not UTF-8.
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    folder, options, more_files = Path(folder), options or PushOptions(), more_files or {}
    if not folder.is_dir() or not files_of(folder):
        raise FileNotFoundError(f"there is nothing to push in {folder}.")
    check_name(repo_id)
    check_no_secrets([*files_of(folder).values(), *more_files.values()])
    with one_sentence(repo_id, f". {again}"):
        return _retry(lambda: _push(folder, repo_id, options, write_readme or _own_readme(folder), more_files))


def check_name(repo_id: str) -> None:
    """Refuse what the Hub would not take as a repository's name.

    Raises:
        ValueError: it is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"{repo_id!r} is not a name for a repository: write user/name (`hgkd publish --repo_id`, "
            "`hgkd distill --hub_model_id`)."
        ) from None


def check_access(repo_id: str, token: str | None = None) -> str:
    """The repository's full name, after asking the Hub who we are and whether we may write to it or create it.

    Raises:
        PushError: there is no token that may write, or the Hub cannot be reached.
    """
    api, after = HfApi(token=token), "; nothing was sent or changed."
    with one_sentence(repo_id, after):
        user = api.whoami()
        repo_id = full_name(user, repo_id)
        if api.repo_exists(repo_id):
            api.auth_check(repo_id, write=True)
        elif not _may_create(user, repo_id):
            raise PushError(_MAY_NOT_WRITE.format(repo_id) + after)
    return repo_id


def full_name(user: dict[str, Any], repo_id: str) -> str:
    """`user/name`, for what `HfApi.whoami` answered."""
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _may_create(user: dict[str, Any], repo_id: str) -> bool:
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    token = user.get("auth", {}).get("accessToken", {})
    return repo_id.split("/")[0] in owners and token.get("role") != "read"


def _own_readme(folder: Path) -> Callable[[Head], str]:
    def write(head: Head) -> str:
        own, existing = readme.read_local(folder), head.readme()
        return existing or "" if own is None else readme.merge(own, existing)

    return write


def _push(
    folder: Path, repo_id: str, options: PushOptions, write_readme: Callable, more_files: dict[str, Path]
) -> CommitInfo:
    api = HfApi(token=options.token)
    # Who we are is asked first, so that a missing or wrong token is found before anything is sent.
    repo_id = full_name(api.whoami(), repo_id)
    _find_or_create(api, repo_id, options)
    head = Head.of(api, repo_id, options)
    text = write_readme(head)
    if not options.create_pr:  # else it is somebody else's repository
        _set_up(api, head, options)
    if text:
        (folder / readme.FILE).write_text(text, encoding="utf-8")
    files = files_of(folder) | more_files
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(name, path) for name, path in files.items()],
        commit_message=options.message,
        revision=options.revision,
        create_pr=options.create_pr,
        parent_commit=head.commit,
        repo_type=options.repo_type,
    )
    if options.tag:
        _tag(api, repo_id, options, commit.oid)
    return commit


def _find_or_create(api: HfApi, repo_id: str, options: PushOptions) -> None:
    try:
        info = api.repo_info(repo_id, repo_type=options.repo_type)
    except RepositoryNotFoundError:
        try:
            api.create_repo(repo_id, private=options.private, repo_type=options.repo_type)
        except HfHubHTTPError as error:
            if _status(error) != 409:  # it is there after all; `exist_ok` fails if that answer lacks the address
                raise
    else:
        if options.private is not None and info.private != options.private:
            kept = "private" if info.private else "public"
            logger.warning("%s exists and stays %s; its settings on the Hub change that.", repo_id, kept)


def _set_up(api: HfApi, head: Head, options: PushOptions) -> None:
    """Gate the repository and begin the branch, where that is asked for."""
    kind = {"repo_type": options.repo_type}
    if options.gated is not None:
        api.update_repo_settings(head.repo_id, gated=options.gated, **kind)
    if options.revision is not None and not options.revision.startswith("refs/pr/"):
        api.create_branch(head.repo_id, branch=options.revision, revision=head.commit, exist_ok=True, **kind)


def _tag(api: HfApi, repo_id: str, options: PushOptions, commit: str) -> None:
    """Tag a commit; a tag that others may have pinned is not moved."""
    tag, kind = options.tag, {"repo_type": options.repo_type}
    try:
        api.create_tag(repo_id, tag=tag, revision=commit, **kind)
    except HfHubHTTPError as error:
        if _status(error) != 409:
            raise
        there = api.repo_info(repo_id, revision=tag, **kind).sha
        if there != commit:
            logger.warning("The tag %s of %s stays at commit %s: choose another one.", tag, repo_id, there)


def _retry(push: Callable[[], CommitInfo]) -> CommitInfo:
    for attempt in range(ATTEMPTS):
        try:
            return push()
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not _may_pass(error):
                raise
            logger.warning("The Hub did not take the push (%s); trying again.", type(error).__name__)
            if _status(error) != 412:  # somebody committed meanwhile: read again at once
                time.sleep(PAUSES[attempt])
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _may_pass(error: Exception) -> bool:
    """Whether a second attempt may succeed. Uploads that failed were repeated by the client for half a minute."""
    if isinstance(error, RuntimeError):
        return False
    status = _status(error)
    return isinstance(error, httpx.TransportError) if status is None else status in (408, 412, 429) or status >= 500


@contextmanager
def one_sentence(repo_id: str, after: str) -> Iterator[None]:
    """Turn what the client raises into a `PushError` that names cause and remedy; `after` ends its sentence."""
    try:
        yield
    except (PushError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        said = explain(error, repo_id)
        if said is None:
            raise
        raise PushError(said + after) from error


def explain(error: Exception, repo_id: str) -> str | None:
    """What went wrong between us and the Hub, and what to do; None if it is nothing of that kind."""
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return "the Hub asks who you are: run `hf auth login` or set HF_TOKEN"
    if status == 401:
        return f"the Hub does not accept the token, or {repo_id} is not visible to it: run `hf auth login` again"
    if status == 403:
        return _MAY_NOT_WRITE.format(repo_id)
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision: correct its name"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id} is not visible to this token: correct its name, or log in as somebody who may see it"
    if status == 412:
        return f"somebody else keeps committing to {repo_id}: wait a moment"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered {status or 'nothing'} ({_first_line(error)})"
    if isinstance(error, ValueError) and "metadata" in str(error):
        return f"the Hub refuses the metadata of the README ({_first_line(error)})"
    if isinstance(error, httpx.TransportError | RuntimeError | OSError):
        cause = error.__cause__ or error
        return f"the connection to the Hub broke ({type(cause).__name__})"
    return None


def _first_line(error: Exception) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    text = next((line for line in reversed(list(lines)) if line), type(error).__name__)
    return re.sub(r"\s*\(Request ID:.*?\)", "", text).rstrip(".")
