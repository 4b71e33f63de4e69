#!/usr/bin/env bash
# Submits jobs/recipes/tulu3_8b.yaml to a running Ray cluster of 8 x 8 GPUs and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/tulu3_8b.sh [--section.field value ...]
# The run keeps its name, so the same command resumes it. Ctrl-C ends the following, not the job.
# Secrets (HF_TOKEN, MLFLOW_TRACKING_TOKEN ...) come from the cluster's nodes and not from here: a
# job's command line and runtime environment are shown in the dashboard.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export RAY_ADDRESS="${RAY_ADDRESS:-http://127.0.0.1:8265}"
export RAY_AUTH_MODE=token

token_file="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$token_file" ]; then
    cat >&2 <<EXPLANATION
error: no token for the Ray cluster at $RAY_ADDRESS: RAY_AUTH_TOKEN is not set, and $token_file is
missing or empty. Put the token of the cluster into either. A cluster made with 'ray up' has the
token of the machine that made it (ray get-auth-token); one made by KubeRay keeps it in a Secret
with the name of the RayCluster (cluster/README.md).
EXPLANATION
    exit 2
fi

use_environment requirements.txt
job="tulu3-8b-$(date +%Y%m%d-%H%M%S)"
echo "== submitting $job to $RAY_ADDRESS"
# Ray leaves .git, .venv and what .gitignore names out of the upload; the model card says the commit.
commit="$(git rev-parse --short=12 HEAD 2>/dev/null || true)"
exec .venv/bin/ray job submit --address "$RAY_ADDRESS" --submission-id "$job" --working-dir . \
    --runtime-env-json "{\"env_vars\": {\"RM_RAY_COMMIT\": \"$commit\"}}" -- \
    python jobs/train.py --recipe jobs/recipes/tulu3_8b.yaml "$@"
