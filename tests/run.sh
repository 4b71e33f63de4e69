#!/usr/bin/env bash
# Checks everything: style, types, tests. The long proofs have commands of their own (tests/README.md).
#   bash tests/run.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
started=$SECONDS
echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ $# -gt 0 ]; then
    echo "== mypy"
    .venv/bin/mypy
    echo "== pytest"
    .venv/bin/python -m pytest "$@"
else
    status=0
    logs="$(mktemp -d)"
    # Beside mypy and what starts Ray, and after them in line for a core: a process a core, of one
    # thread each.
    set -m  # otherwise bash has background commands ignore Ctrl-C, which some tests send
    OMP_NUM_THREADS=1 nice .venv/bin/python -m pytest -n "$(nproc)" --dist loadfile \
        tests/unit tests/parity >"$logs/others" 2>&1 &
    others=$!
    set +m
    trap 'kill "$others" 2>/dev/null || true; rm -rf "$logs"' EXIT
    echo "== mypy"
    .venv/bin/mypy
    echo "== pytest tests/integration"
    .venv/bin/python -m pytest tests/integration 2>&1 | tee "$logs/integration" || status=1
    echo "== pytest tests/unit tests/parity"
    wait "$others" || status=1
    trap 'rm -rf "$logs"' EXIT
    cat "$logs/others"
    echo "== the slowest ten"
    sed -nE '/^[0-9.]+s +(call|setup|teardown) /p' "$logs"/* | sort -rn | sed -n 1,10p
    [ $status = 0 ] || { echo "== failed after $((SECONDS - started)) s" >&2; exit 1; }
fi
echo "== all checks passed in $((SECONDS - started)) s"
