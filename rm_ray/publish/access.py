"""Permissions of a Hugging Face Hub token, and the files of models on the Hub.

Requests are not retried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import torch
from huggingface_hub import (
    get_session,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not in __all__
    build_hf_headers,
    hf_raise_for_status,
)
from torch import Tensor

from rm_ray.errors import InputError, first_line
from rm_ray.model.weight_files import (
    DTYPES,
    INDEXES,
    WHOLE,
    choose_index,
    find_missing_weights,
    list_some,
    read_index,
    without_values,
)
from rm_ray.publish.hub import REMEDIES, HubAwayError, open_api

T = TypeVar("T")

WRITES = ("write", "contributor", "admin")
"""Roles of a token or of an organization member that may write."""


@dataclass(frozen=True, kw_only=True)
class HubAccess:
    """A token's user, and its access to a repository."""

    user: str
    exists: bool
    """Whether the repository exists."""
    obstacle: str = ""
    """Why the token may not write to it; empty if it may."""


@dataclass(frozen=True, kw_only=True)
class ModelListing:
    """A Hub repository's file list, and its index of weight files."""

    files: frozenset[str]
    index: dict[str, Any] | None = None


def find_access(repo_id: str, *, endpoint: str | None = None) -> HubAccess:
    """Return the token's user, and whether the token may write to a repository.

    Raises:
        InputError: there is no token, or the Hub refuses it.
        HubAwayError: the Hub does not answer.
    """
    api = open_api(endpoint)
    answer: dict[str, Any] = _ask(f"hub.repo_id '{repo_id}'", api.whoami)
    try:
        _ask(f"hub.repo_id '{repo_id}'", lambda: api.model_info(repo_id))
        exists = True
    except RepositoryNotFoundError as error:
        exists = isinstance(error, GatedRepoError)
    return HubAccess(
        user=str(answer.get("name", "")), exists=exists, obstacle=find_obstacle(answer, repo_id)
    )


def find_obstacle(answer: dict[str, Any], repo_id: str) -> str:
    """Return why a token may not write, from the Hub's ``whoami`` response; empty if it may."""
    token = (answer.get("auth") or {}).get("accessToken") or {}
    role, namespace = str(token.get("role", "")), repo_id.split("/")[0]
    if role == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped") or []
        allowed = any(
            "repo.write" in (scope.get("permissions") or ())
            and (scope.get("entity") or {}).get("name") in (namespace, repo_id)
            for scope in scopes
        )
        return "" if allowed else f"the fine-grained token has no 'repo.write' for '{namespace}'"
    if role and role not in WRITES:
        return f"the token's role is '{role}'"
    roles = {
        str(org.get("name")): str(org.get("roleInOrg", "write")) for org in answer.get("orgs") or ()
    }
    if namespace != answer.get("name") and namespace not in roles:
        return (
            f"the token's user '{answer.get('name')}' is neither '{namespace}' nor a member of it"
        )
    if roles.get(namespace, "write") not in WRITES:
        return f"the role of '{answer.get('name')}' in '{namespace}' is '{roles[namespace]}'"
    return ""


def list_model(
    name: str, *, revision: str | None = None, endpoint: str | None = None
) -> ModelListing:
    """List a model's files and read its config and weight index, but no weights.

    Raises:
        InputError: the model does not exist, or may not be read.
        HubAwayError: the Hub does not answer.
    """
    api, what = open_api(endpoint), f"model.name_or_path '{name}'"
    try:
        info = _ask(what, lambda: api.model_info(name, revision=revision))
        files = frozenset(file.rfilename for file in info.siblings or ())
        if "config.json" in files:  # a gated model lists its files but refuses downloads
            _ask(what, lambda: api.hf_hub_download(name, "config.json", revision=revision))
        index = choose_index(files)
        if index is None:
            return ModelListing(files=files)
        path = _ask(what, lambda: api.hf_hub_download(name, index, revision=revision))
    except GatedRepoError:
        raise InputError(
            f"{what}: it is gated; request access on its page, and set HF_TOKEN to your token"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"{what}: {REMEDIES[404]}") from None
    return ModelListing(files=files, index=read_index(Path(path).read_text()))


def find_commit(name: str, *, revision: str | None = None, endpoint: str | None = None) -> str:
    """Return the commit that a model's branch or tag is at; by default ``main``.

    Raises:
        InputError: the model or the revision does not exist, or may not be read.
        HubAwayError: the Hub does not answer.
    """
    api, what = open_api(endpoint), f"--model '{name}'"

    def ask() -> str:
        try:
            return str(api.model_info(name, revision=revision).sha)
        except RevisionNotFoundError:
            raise InputError(f"{what} has no branch, tag or commit '{revision}'") from None

    try:
        return _ask(what, ask)
    except RepositoryNotFoundError:
        raise InputError(f"{what}: {REMEDIES[404]}") from None


def read_hub_headers(
    name: str, *, revision: str | None = None, endpoint: str | None = None
) -> dict[str, Tensor] | None:
    """Return a Hub model's weights without values, by name; None if they are pickled.

    The Hub serves headers of safetensors files only.

    Raises:
        InputError: the model or one of its files does not exist, or may not be read.
        HubAwayError: the Hub does not answer.
    """
    what = f"model.name_or_path '{name}'"
    listing = list_model(name, revision=revision, endpoint=endpoint)
    if missing := find_missing_weights(listing.files, listing.index):
        raise InputError(f"{what} on the Hub lacks {list_some(missing)}; choose another revision")
    if not {WHOLE[0], INDEXES[0]} & listing.files:
        return None
    api = open_api(endpoint)
    try:
        metadata = _ask(what, lambda: api.get_safetensors_metadata(name, revision=revision))
    except SafetensorsParsingError as error:
        raise InputError(f"{what} on the Hub: {first_line(error)}") from None
    return {
        weight: without_values(tensor.shape, tensor.dtype)
        for file in metadata.files_metadata.values()
        for weight, tensor in file.tensors.items()
    }


def read_hub_weight(
    name: str, weight: str, *, revision: str | None = None, endpoint: str | None = None
) -> Tensor:
    """Return one small weight of a Hub model, without downloading its file.

    Raises:
        InputError: it may not be read.
        HubAwayError: the Hub does not answer.
    """
    api, what = open_api(endpoint), f"model.name_or_path '{name}'"
    metadata = _ask(what, lambda: api.get_safetensors_metadata(name, revision=revision))
    file = metadata.weight_map[weight]
    url = hf_hub_url(name, file, revision=revision, endpoint=api.endpoint)

    def read(first: int, last: int) -> bytes:
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        response = get_session().get(url, headers=headers)
        hf_raise_for_status(response)
        is_part = response.status_code == httpx2.codes.PARTIAL_CONTENT
        return response.content if is_part else response.content[first:last]

    start = 8 + int.from_bytes(_ask(what, lambda: read(0, 8)), "little")  # the header's length
    described = metadata.files_metadata[file].tensors[weight]
    first, last = (start + offset for offset in described.data_offsets)
    values = bytearray(_ask(what, lambda: read(first, last)))
    return torch.frombuffer(values, dtype=DTYPES[described.dtype]).reshape(described.shape)


def list_hashes(
    name: str, *, revision: str | None = None, endpoint: str | None = None
) -> dict[str, str]:
    """Return the SHA-256 of a Hub model's weight files by name, without downloading large ones.

    Raises:
        InputError: the model does not exist, or may not be read.
        HubAwayError: the Hub does not answer.
    """
    api, what = open_api(endpoint), f"model.name_or_path '{name}'"
    listing = list_model(name, revision=revision, endpoint=endpoint)
    whole = [file for file in WHOLE if file in listing.files][:1]
    names = set(listing.index["weight_map"].values()) if listing.index else set(whole)
    info = _ask(what, lambda: api.model_info(name, revision=revision, files_metadata=True))
    known = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs}

    def read(file: str) -> str:  # small enough for the Hub to keep it in Git
        path = _ask(what, lambda: api.hf_hub_download(name, file, revision=revision))
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    return {file: known.get(file) or read(file) for file in sorted(names)}


def find_cached(name: str, *, revision: str | None = None) -> list[Path] | None:
    """Return a Hub model's weight files in this machine's cache; None unless all are cached."""

    def find(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    try:
        there = {file: path for file in (*WHOLE, *INDEXES) if (path := find(file))}
    except HFValidationError:
        return None
    index = choose_index(there)
    if index is None:
        return [next(there[file] for file in WHOLE if file in there)] if there else None
    weight_map = read_index(there[index].read_text())["weight_map"]
    files = [find(file) for file in sorted(set(weight_map.values()))]
    return None if None in files else [file for file in files if file is not None]


def _ask(what: str, action: Callable[[], T]) -> T:
    """Make one request and translate its errors, except RepositoryNotFoundError."""
    try:
        return action()
    except RepositoryNotFoundError:
        raise
    except HFValidationError:
        raise InputError(f"{what} is neither a folder nor a name on the Hugging Face Hub") from None
    except LocalTokenNotFoundError:
        raise InputError(f"{what}: there is no token; set HF_TOKEN, or log in with hf") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REMEDIES:
            raise InputError(f"{what}: the Hub refuses ({status}): {REMEDIES[status]}") from None
        raise HubAwayError(f"the Hub returned status {status}") from error
    except (httpx2.TransportError, OSError) as error:
        raise HubAwayError(f"the Hub does not answer: {first_line(error)}") from error
