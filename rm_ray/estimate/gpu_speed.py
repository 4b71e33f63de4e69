"""The compute speed of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

TERA = 10**12

GPU_PEAK = 989 * TERA
"""Dense bfloat16 FLOP/s of an H100 SXM (NVIDIA's data sheet)."""

COMPUTE_SHARE = 0.4
"""Share of the peak that forward and backward passes reach, communication excluded. Assumed unless
a speed is measured."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The compute speed of a GPU, and how it is known."""

    peak: float
    """FLOP/s in the data sheet; the denominator of MFU."""

    reached: float
    """FLOP/s in forward and backward passes, communication excluded."""

    source: str
    """Where ``reached`` comes from, for people to read."""

    is_measured: bool = False
    """Whether ``reached`` was measured in the run's layout, so it already accounts for padding."""

    @classmethod
    def of(cls, *, peak: float, share: float, measured: float | None) -> Compute:
        """Return the speed measured on a GPU, or else a ``share`` of the ``peak``.

        ``peak`` and ``measured`` are in FLOP/s.
        """
        if measured is not None:
            source = f"{measured / TERA:.0f} TFLOP/s per GPU in its passes, measured on one"
            return cls(peak=peak, reached=measured, source=source)
        reached = share * peak
        source = (
            f"{reached / TERA:.0f} TFLOP/s per GPU in its passes, assumed: {share:g} of "
            f"a peak of {peak / TERA:g}"
        )
        return cls(peak=peak, reached=reached, source=source)
