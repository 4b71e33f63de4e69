"""Validation of settings: rules, dates, and no secrets."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from urllib.parse import unquote, urlsplit

from rm_ray.errors import InputError


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Reject a setting unless its rule ``holds``.

    Raises:
        InputError: the rule does not hold; the message has the setting, the rule and the value.
    """
    if not holds:
        raise InputError(f"{name} must be {rule}, got {value!r}")


def require_date(name: str, value: str | None) -> None:
    """Reject a date that is not in the format 2026-11-28; None is allowed.

    Raises:
        InputError: the date is invalid; the message has the setting, the rule and the value.
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
"""Pattern of URI parameter names that hold a secret."""


_USER = re.compile(r"[^:/@]*:(?!\d*([/?#]|$))[^@]*@")
"""USER:PASSWORD@, but not HOST:PORT; database drivers allow any character in a password."""
_HTTP_USER = re.compile(r"[^/?#]*@")


def refuse_password(name: str, uri: str | None, where: str) -> None:
    """Reject a URI with a password or key, because settings are printed, logged and stored.

    Raises:
        InputError: the URI holds a secret or is malformed; the message does not repeat it.
    """
    if uri is None or "://" not in uri:
        return
    try:
        urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{name} must be a valid URI: {error}") from None
    scheme, *rest = uri.split("://")  # fsspec can chain several
    has_user = any(
        _USER.match(after) or (before.endswith(("http", "https")) and _HTTP_USER.match(after))
        for before, after in pairwise((scheme, *rest))
    )
    keys = re.findall(r"[?&;#]([^=?&;#]+)=", uri)
    if has_user or any(re.search(_SECRET_KEYS, unquote(key).lower()) for key in keys):
        raise InputError(
            f"{name} must not contain a password, got '{scheme}://...'; put it into {where}"
        )
