"""What a benchmark needs beside torch and transformers, said before anything is measured."""

from __future__ import annotations

from machine import version_of

RECOMPUTES = (5, 23)
"""The pinned transformers, whose models have ``activation_checkpointing_enable``; 5.17 lacks it."""


def find_lacking(*, recomputes: bool, liger: str, device: str) -> str | None:
    """Return which package is missing or too old, and what to do; none where all is there."""
    found = version_of("transformers") or "0"
    if recomputes and tuple(map(int, found.split(".")[:2])) < RECOMPUTES:
        return (
            f"--gradient-checkpointing needs transformers {'.'.join(map(str, RECOMPUTES))} or "
            f"newer (activation_checkpointing_enable), and this is {found}; tests/gpu/pack.sh "
            "packs the pinned one"
        )
    uses_liger = liger == "on" or (liger == "auto" and device == "cuda")
    if uses_liger and version_of("liger-kernel") is None:
        return (
            f"--liger {liger} on {device} needs liger-kernel, which is not installed; "
            "tests/gpu/pack.sh packs the pinned one, and --liger off measures without"
        )
    return None
