"""Evaluate a reward model on pairs: ``python jobs/evaluate.py --model DIR --data FILE``."""

import sys
from pathlib import Path

# Without this folder, where a file has the name of Python's own inspect.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.score import main_evaluate

if __name__ == "__main__":
    sys.exit(main_evaluate(sys.argv[1:]))
