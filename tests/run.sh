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
.venv/bin/python -m pytest "$@"
echo "== all checks passed in $((SECONDS - started)) s"
