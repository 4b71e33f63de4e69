#!/usr/bin/env bash
# Submits jobs/recipes/rewardbench2_8b.yaml to a running Ray cluster of 8 GPUs and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/rewardbench2_8b.sh [--section.field value ...]
recipe=rewardbench2_8b
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"
