#!/usr/bin/env bash
# Scores the same conversations with an exported model in every client that is promised to read it,
# each in an environment of its own below .clients (8 GB).
#   bash tests/clients.sh [transformers transformers4 trl rewardbench vllm]
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
exec .venv/bin/python tests/clients/run.py "$@"
