# shellcheck shell=bash
# Submits the recipe named by $recipe to a running Ray cluster and follows its log; sourced by the
# scripts of recipes. The run keeps its name, so the same command resumes it. Ctrl-C stops following
# the log, not the job. Set secrets (HF_TOKEN, MLFLOW_TRACKING_TOKEN ...) on the cluster's nodes, not
# here: the dashboard shows a job's command line and runtime environment.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
: "${recipe:?is set by the script of a recipe}"
export RAY_ADDRESS="${RAY_ADDRESS:-http://127.0.0.1:8265}"
export RAY_AUTH_MODE=token

token_file="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "$token_file" ]; then
    cat >&2 <<EXPLANATION
error: no token for the Ray cluster at $RAY_ADDRESS: RAY_AUTH_TOKEN is not set, and $token_file is
missing or empty. Set either to the cluster's token. A cluster started with 'ray up' uses the token
of the machine that started it (ray get-auth-token); KubeRay keeps it in a Secret named after the
RayCluster (cluster/kuberay.md).
EXPLANATION
    exit 2
fi

use_environment requirements.txt
job="${recipe//_/-}-$(date +%Y%m%d-%H%M%S)"
echo "== submitting $job to $RAY_ADDRESS"
# The upload excludes .git, .venv and ignored files, so pass the commit on for the model card.
commit="$(git rev-parse --short=12 HEAD 2>/dev/null || true)"
exec .venv/bin/ray job submit --address "$RAY_ADDRESS" --submission-id "$job" --working-dir . \
    --runtime-env-json "{\"env_vars\": {\"RM_RAY_COMMIT\": \"$commit\"}}" -- \
    python jobs/train.py --recipe "jobs/recipes/$recipe.yaml" "$@"
