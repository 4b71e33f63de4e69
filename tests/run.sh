#!/usr/bin/env bash
# Checks everything: style, types, tests. The long proofs have commands of their own (README).
#   bash tests/run.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
started=$SECONDS
echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== mypy"
.venv/bin/mypy
echo "== pytest"
if [ $# -gt 0 ]; then
    .venv/bin/python -m pytest "$@"
else
    # One process a core, of one thread each; what starts Ray comes after, alone.
    OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$(nproc)" --dist loadfile tests/unit tests/parity
    .venv/bin/python -m pytest tests/integration
fi
echo "== all checks passed in $((SECONDS - started)) s"
