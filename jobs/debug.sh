#!/usr/bin/env bash
# Trains the built-in debug run on this machine, straight from a fresh clone:
# generated preference pairs, a small Llama, no data or model downloads, no account.
#   bash jobs/debug.sh [--section.field value ...]     (see: python jobs/train.py --help)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
echo "== training jobs/recipes/debug.yaml"
exec .venv/bin/python jobs/train.py --recipe jobs/recipes/debug.yaml \
    --run.name "debug-$(date +%Y%m%d-%H%M%S)" "$@"
