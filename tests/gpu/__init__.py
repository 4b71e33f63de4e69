"""What is measured in the first minutes on a real GPU: ``bash tests/gpu/run.sh``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "benchmarks", "fault"))]
