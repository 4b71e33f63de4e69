"""Look for bad rows in preference data: ``python jobs/audit.py --data pairs.jsonl``."""

import sys
from pathlib import Path

# Drop this folder from the path: its inspect.py would shadow the standard library's.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.audit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
