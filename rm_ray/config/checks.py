"""What every setting must keep to, and how it is refused where it does not."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from urllib.parse import unquote, urlsplit

from rm_ray.errors import InputError


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Refuse a setting that breaks its rule.

    Raises:
        InputError: naming the setting, the rule and the value.
    """
    if not holds:
        raise InputError(f"{name} must be {rule}, got {value!r}")


def require_date(name: str, value: str | None) -> None:
    """Refuse a date that is not written as in 2026-11-28; none is one.

    Raises:
        InputError: naming the setting, the rule and the value.
    """
    try:
        is_date = value is None or date.fromisoformat(value).isoformat() == value
    except ValueError:
        is_date = False
    require(is_date, name, value, "a date such as 2026-11-28")


_SECRET_KEYS = (
    r"secret|token|passw|passphrase|credential|signature|(api|access|account|shared)[-_]?key"
    r"|(^|[-_])(key|pwd|auth|sig)s?$"
)
"""What the names of parameters that hold a secret look like."""


_USER = re.compile(r"[^:/@]*:(?!\d*([/?#]|$))[^@]*@")
"""A user and a password, in which drivers of databases allow any sign; no host and port."""
_HTTP_USER = re.compile(r"[^/?#]*@")


def refuse_password(name: str, uri: str | None, where: str) -> None:
    """Configurations are printed, logged and kept, and so must hold no secret."""
    if uri is None or "://" not in uri:
        return
    try:
        urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{name} must be a URI, got one that cannot be read: {error}") from None
    scheme, *rest = uri.split("://")  # more than one in what fsspec chains
    has_user = any(
        _USER.match(after) or (before.endswith(("http", "https")) and _HTTP_USER.match(after))
        for before, after in pairwise((scheme, *rest))
    )
    keys = re.findall(r"[?&;#]([^=?&;#]+)=", uri)
    if has_user or any(re.search(_SECRET_KEYS, unquote(key).lower()) for key in keys):
        raise InputError(f"{name} must hold no password, got '{scheme}://...'; give it by {where}")
