"""How long ranks may take for what, in seconds, and who gives up first.

The watch ends ranks that stand still. PyTorch's collectives, of which a few ranks may wait for the
others' storage or model, come after everything else: an error of theirs ends a healthy run.
"""

from __future__ import annotations

SILENT_AFTER_S = 30.0
"""A process whose pulse thread says nothing for so long is stopped or has lost its machine."""

STALLED_AFTER_S = 45.0
"""Ranks that go through no micro-batch for so long hang together, unless they were ever slower."""

SLOWER = 5.0
"""A stall is longer than so many times the longest time that a micro-batch took before."""

SLOWER_THAN_FIRST = 2.0
"""The same for the first step's, which count until a later one is known: they take longer."""

RENDEZVOUS_S = 300.0
"""How long PyTorch's process group may take to form; every worker has imported torch by then."""

COMPANY_S = 120.0
"""How long after the first rank the last one may begin."""

EXCHANGE_S = 120.0
"""How long ranks that are all there may take to exchange something for the first time."""

CONNECT_S = 180.0
"""How long ranks may stand still while they connect, where they do not give up by themselves."""

FIRST_STEP_S = 900.0
"""How long the first step may take, in which kernels are compiled.

Ranks are connected by then, the world's when they begin, DeepSpeed's when it takes the model.
"""

DATA_S = 600.0
"""How long data may be waited for."""

SLOW_S = 3_600.0
"""How long a model may take to be read, written or gathered, or a storage to answer at all."""

UPLOAD_S = 3_600.0
"""How long copying may take beside the time for which a storage may fail."""

MARGIN_S = 600.0
"""How much longer a collective waits than anything that may keep a rank from it."""


def collective_limit(storage_patience_s: float) -> float:
    """Return the seconds after which PyTorch ends a collective that some rank does not come to.

    Longer than a checkpoint that a slow storage takes at last, and than an export, whose model and
    probes rank 0 writes one after the other.
    """
    return max(SLOW_S, UPLOAD_S + 2 * storage_patience_s) + MARGIN_S
