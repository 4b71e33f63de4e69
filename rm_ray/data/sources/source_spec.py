"""An entry of ``data.train`` or ``data.eval``: a location, a split and a share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rm_ray.errors import InputError

_SPEC = re.compile(
    r"^(?P<location>.+?)(?:(?::(?P<config>[^:/=]+))?:(?P<split>[^:/=]+))?(?:=(?P<share>[0-9.]+))?$"
)


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A parsed entry of ``data.train`` or ``data.eval``."""

    text: str
    location: str
    split: str | None = None
    config: str | None = None
    fraction: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read ``path-or-dataset[[:config]:split][=0.5|=400]``.

        If a file or folder of exactly this name exists, the whole text is its path.

        Raises:
            InputError: it has another form, or the share is out of range.
        """
        if exists_locally(text):
            return cls(text=text, location=text)
        match = _SPEC.match(text.strip())
        if match is None:
            raise InputError(f"data source '{text}' must look like path-or-dataset[:split][=share]")
        share = match["share"]
        if share and (share == "." or share.count(".") > 1):
            raise InputError(f"data source '{text}': the share '{share}' is not a number")
        fraction = float(share) if share and "." in share else None
        count = int(share) if share and "." not in share else None
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"data source '{text}': a fraction must be above 0 and at most 1.0")
        if count is not None and count < 1:
            raise InputError(f"data source '{text}': a number of rows must be at least 1")
        rest = text.strip().removesuffix(f"={share}") if share else text.strip()
        location, split, config = match["location"], match["split"], match["config"]
        if exists_locally(rest):
            location, split, config = rest, None, None
        elif config and exists_locally(f"{location}:{config}"):
            location, config = f"{location}:{config}", None
        return cls(
            text=text, location=location, split=split, config=config, fraction=fraction, count=count
        )


def exists_locally(text: str) -> bool:
    """Return whether a file or folder of exactly this name exists on this machine."""
    return "://" not in text and os.path.lexists(os.path.expanduser(text))
