"""A model repository on the Hugging Face Hub: complete versions under tags, the best on main.

A version is uploaded to its own branch, compared with the local files, and only then tagged: a tag
is always a complete version. Every step can be repeated after any interruption.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from rm_ray.errors import InputError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S, CONNECT_S = 60.0, 20.0
"""Timeouts of one request, and of its connection, in seconds."""

_ONE_AT_A_TIME = threading.Lock()
"""Held while huggingface_hub's client is replaced, which may be done once in a process."""

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0

MAY_PASS = (408, 409, 412, 429)
"""Statuses, besides 5xx, of requests worth retrying."""

REMEDIES = {
    401: "the token is wrong or has expired; set HF_TOKEN to one that may write",
    402: "the account's storage is full or unpaid; free some, or choose another repository",
    403: "the token may not write there; set HF_TOKEN to one that may",
    404: "there is no such repository for this token",
    413: "the upload exceeds the account's storage limit",
}

NOT_THE_MODEL = {".gitattributes"}
"""Files that the Hub itself adds to a repository."""


UPLOADS = 3
"""Upload attempts for a version whose files arrive changed."""


_OUTSIDE = (httpx2.TransportError, OSError, HfHubHTTPError)
"""Failures outside huggingface_hub, which raises them or wraps them in RuntimeError."""


class HubAwayError(Exception):
    """The Hub does not answer, or not properly; a later retry may succeed."""


class HubRefusedError(InputError):
    """The Hub refuses the token or the account; a retry does not help."""


class HubContentsError(InputError):
    """A revision on the Hub has other contents than the local files."""


@dataclass(frozen=True, kw_only=True)
class HubRepo:
    """A repository. Every method raises HubAwayError after retrying for ``patience_s``."""

    api: HfApi
    repo_id: str
    patience_s: float

    @classmethod
    def open(
        cls, repo_id: str, *, private: bool, patience_s: float, endpoint: str | None = None
    ) -> HubRepo:
        """Open the repository, creating it if needed, with the token from the environment.

        Raises:
            HubRefusedError: the token may not write to it.
            HubAwayError: the Hub does not answer.
        """
        constants.HF_HUB_DISABLE_XET = True  # Xet has no timeouts and its own error types
        disable_progress_bars()
        repo = cls(api=open_api(endpoint), repo_id=repo_id, patience_s=patience_s)
        repo._ask(lambda: repo.api.create_repo(repo_id, private=private, exist_ok=True))
        return repo

    def publish(self, folder: Path, tag: str, *, message: str) -> str:
        """Upload a folder as a version, unless the tag exists; return its commit.

        Raises:
            HubContentsError: the tag exists with other contents, or the files arrive changed.
            HubRefusedError: the Hub refuses the token or the account.
            HubAwayError: the Hub does not answer.
        """
        done = self._tags().get(tag)
        if done is None:
            branch = f"{tag}-upload"
            self._ask(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))
            commit = self._upload(folder, branch, message)
            self._ask(lambda: self._tag(tag, commit))
            done = self._tags()[tag]  # another process may have tagged it first
        self._compare(folder, done)
        return done

    def promote(self, tag: str, *, message: str, instead: Path | None = None) -> None:
        """Put a version on ``main`` in one commit; files in ``instead`` replace its own.

        Raises:
            HubRefusedError, HubAwayError: as for ``publish``.
        """
        self._ask(lambda: self._promote(tag, message, instead))

    def _promote(self, tag: str, message: str, instead: Path | None) -> None:
        """Commit the differences; the Hub refuses if ``main`` has changed in the meantime."""
        refs = self.api.list_repo_refs(self.repo_id)
        head = next(ref.target_commit for ref in refs.branches if ref.name == "main")
        theirs, ours = self._list(head), self._list(tag)
        own = {path.name: path for path in instead.iterdir()} if instead else {}
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            CommitOperationAdd(name, str(path))
            for name, path in own.items()
            if name not in theirs or not _is_same(path, theirs[name])
        ]
        operations += [
            CommitOperationCopy(path, path, src_revision=tag)
            for path, found in ours.items()
            if path not in own and (path not in theirs or theirs[path].blob_id != found.blob_id)
        ]
        operations += [
            CommitOperationDelete(path)
            for path in theirs.keys() - ours.keys() - own.keys() - NOT_THE_MODEL
        ]
        if operations:
            self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision="main",
                parent_commit=head,
            )

    def _upload(self, folder: Path, branch: str, message: str) -> str:
        """Upload a folder to a branch until it arrives unchanged; return the commit."""
        for tries_left in reversed(range(UPLOADS)):
            commit = self._ask(
                lambda: self.api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    revision=branch,
                    commit_message=message,
                    delete_patterns="*",  # remove leftovers of interrupted uploads
                )
            ).oid
            try:
                self._compare(folder, commit)
            except HubContentsError as error:
                if not tries_left:
                    raise
                logger.warning("%s. Uploading again", error)
            else:
                break
        return str(commit)

    def _tags(self) -> dict[str, str]:
        refs = self._ask(lambda: self.api.list_repo_refs(self.repo_id))
        return {ref.name: ref.target_commit for ref in refs.tags}

    def _tag(self, tag: str, commit: str) -> None:
        """Tag a commit; ignore an existing tag, since an earlier response may have been lost."""
        try:
            self.api.create_tag(self.repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409 or tag not in self._tags():
                raise

    def _files(self, revision: str) -> dict[str, RepoFile]:
        return self._ask(lambda: self._list(revision))

    def _list(self, revision: str) -> dict[str, RepoFile]:
        tree = self.api.list_repo_tree(self.repo_id, revision=revision, recursive=True)
        return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def _compare(self, folder: Path, revision: str) -> None:
        """Check by checksum that a revision has exactly the folder's files.

        Raises:
            HubContentsError: it has not.
        """
        there = self._files(revision)
        here = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        different = sorted(
            path
            for path in (here.keys() | there.keys()) - NOT_THE_MODEL
            if path not in here or path not in there or not _is_same(here[path], there[path])
        )
        if different:
            raise HubContentsError(
                f"{self.repo_id} at {revision} has other contents than {folder}: "
                f"{', '.join(different)}. Set another hub.revision_prefix, or delete that revision "
                "on the Hub"
            )

    def _ask(self, action: Callable[[], T]) -> T:
        """Make a request, retrying while that may help.

        Raises:
            HubRefusedError: the Hub refuses for good.
            HubAwayError: the Hub did not answer for ``patience_s``.
        """
        give_up, delay = time.monotonic() + self.patience_s, FIRST_DELAY_S
        while True:
            try:
                return action()
            except (*_OUTSIDE, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not isinstance(error.__cause__, _OUTSIDE):
                    raise
                # An upload link may have expired: a retry gets a new one.
                _refuse(self.repo_id, error)
                reason = first_line(error)
                if time.monotonic() + delay > give_up:
                    raise HubAwayError(f"the Hub does not answer: {reason}") from error
                logger.warning("the Hub does not answer; retrying: %s", reason)
            time.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)


def _refuse(repo_id: str, error: Exception) -> None:
    """Raise HubRefusedError for an error that a retry cannot fix."""
    if isinstance(error, OfflineModeIsEnabled):
        raise HubRefusedError(
            f"hub.repo_id '{repo_id}' cannot be reached, since HF_HUB_OFFLINE is set: unset it, or "
            "publish nothing"
        )
    if not isinstance(error, HfHubHTTPError):
        return
    status = error.response.status_code
    if status >= 500 or status in MAY_PASS:
        return
    answer = str(error.server_message or error).strip().splitlines()[0]
    remedy = REMEDIES.get(status, "see the Hub's message")
    raise HubRefusedError(
        f"hub.repo_id '{repo_id}': the Hub refuses ({status}: {answer}): {remedy}"
    )


def open_api(endpoint: str | None) -> HfApi:
    """Return the Hub's API, with timeouts; its default client has none."""
    with _ONE_AT_A_TIME:
        _bound_requests()
    return HfApi(endpoint=endpoint)


@cache  # a new client ends the requests that other threads have under way
def _bound_requests() -> None:
    """Give all of huggingface_hub's requests a timeout.

    The hooks of its own client are kept: they name requests, and refuse them where HF_HUB_OFFLINE
    is set.
    """
    hooks = get_session().event_hooks
    set_client_factory(lambda: _BoundedClient(event_hooks=hooks, follow_redirects=True))


class _BoundedClient(httpx2.Client):
    """The client of all threads, with the timeouts of this module."""

    @property
    def timeout(self) -> httpx2.Timeout:
        """Return the longest waits for a connection and for an answer."""
        return httpx2.Timeout(ANSWER_S, connect=min(CONNECT_S, ANSWER_S))

    @timeout.setter
    def timeout(self, timeout: Any) -> None:
        """Keep those of this module."""


def _is_same(path: Path, found: RepoFile) -> bool:
    """Compare by SHA-256 if the Hub stores the file in LFS, else by git blob id."""
    size = path.stat().st_size
    if size != found.size:
        return False
    digest = hashlib.sha256() if found.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest() == (found.lfs.sha256 if found.lfs else found.blob_id)
