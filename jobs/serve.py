"""Serve a reward model over HTTP: ``python jobs/serve.py --model DIR``."""

import sys
from pathlib import Path

# Drop this folder from the path: its inspect.py would shadow the standard library's.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.serve import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
