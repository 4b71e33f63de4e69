"""Show what would be trained on: ``python jobs/inspect.py --data pairs.jsonl``."""

import sys
from pathlib import Path

# Without this folder, where a file has the name of Python's own inspect.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.inspect import main_inspect

if __name__ == "__main__":
    sys.exit(main_inspect(sys.argv[1:]))
