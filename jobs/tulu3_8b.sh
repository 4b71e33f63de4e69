#!/usr/bin/env bash
# Submits jobs/recipes/tulu3_8b.yaml to a running Ray cluster of 8 x 8 GPUs and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/tulu3_8b.sh [--section.field value ...]
recipe=tulu3_8b
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"
