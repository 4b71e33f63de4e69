#!/usr/bin/env bash
# Submits jobs/recipes/tulu3_8b_lora.yaml to a running Ray cluster with a GPU of 80 GB and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/tulu3_8b_lora.sh [--section.field value ...]
recipe=tulu3_8b_lora
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"
