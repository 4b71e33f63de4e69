"""Check a run before it begins: ``python jobs/preflight.py --recipe jobs/recipes/debug.yaml``."""

import sys
from pathlib import Path

# Without this folder, where a file has the name of Python's own inspect.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.preflight import main_preflight

if __name__ == "__main__":
    sys.exit(main_preflight(sys.argv[1:]))
