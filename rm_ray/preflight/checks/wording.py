"""Human-readable counts, lists and sizes."""

from __future__ import annotations

from collections.abc import Iterable

from rm_ray.estimate.gpu_memory import GIGABYTE


def count(number: int, noun: str, ending: str = "s") -> str:
    """Format a count: ``count(2, "worker")`` is '2 workers'."""
    return f"{number:,} {noun}{ending * (number != 1)}"


def list_first(names: Iterable[str], most: int = 4) -> str:
    """List the first ``most`` names, and count the rest."""
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def gigabytes(size: int) -> str:
    """Format bytes as GB (10^9 bytes), with fewer digits for larger sizes."""
    digits = 0 if size >= 100 * GIGABYTE else 1 if size >= GIGABYTE else 2
    return f"{size / GIGABYTE:,.{digits}f} GB"
