#!/usr/bin/env bash
# Trains open-instruct's single-GPU debug run on this machine: EleutherAI/pythia-14m on 400 pairs
# from trl-internal-testing/sentiment-trl-style, both downloaded from the Hugging Face Hub.
#   bash jobs/debug_hub.sh [--section.field value ...]     (see: python jobs/train.py --help)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment requirements.txt
echo "== training jobs/recipes/debug_hub.yaml"
exec .venv/bin/python jobs/train.py --recipe jobs/recipes/debug_hub.yaml \
    --run.name "debug-hub-$(date +%Y%m%d-%H%M%S)" "$@"
