#!/usr/bin/env bash
# Trains the embedded default on this machine, from a fresh clone with nothing installed:
# generated preference pairs, a small Llama, no download of data or models, no account.
#   bash jobs/debug.sh [--section.field value ...]     (see: python jobs/train.py --help)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
echo "== training jobs/recipes/debug.yaml"
exec .venv/bin/python jobs/train.py --recipe jobs/recipes/debug.yaml \
    --run.name "debug-$(date +%Y%m%d-%H%M%S)" "$@"
