#!/usr/bin/env bash
# Submits jobs/recipes/llama70b.yaml to a running Ray cluster of 8 x 8 GPUs and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/llama70b.sh [--section.field value ...]
recipe=llama70b
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"
