#!/usr/bin/env bash
# The run of jobs/recipes/tulu3_8b.yaml as a Slurm job: 8 nodes of 8 GPUs, with Ray on them for as
# long as it lasts. See cluster/README.md.
#   sbatch cluster/slurm.sh [--section.field value ...]     from the project's root, on shared storage
#SBATCH --job-name=rm-ray-tulu3-8b
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=80
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --requeue
# The notice of the end goes to this script alone, with time for a checkpoint. Sent to the tasks it
# would end Ray, whose processes do not save.
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

export PATH="$PWD/.venv/bin:$PATH"
# Models and datasets are downloaded once, for all nodes.
export HF_HOME="${HF_HOME:-/mnt/cluster_storage/huggingface}"
# Where machines have interfaces over which they do not reach one another (docker0, virbr0), say which
# is the right one:  export NCCL_SOCKET_IFNAME=eth0  (and NCCL_IB_HCA=mlx5 for InfiniBand's cards).
# Every node gets the token from here, also where they share no home.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(ray get-auth-token --generate 2>/dev/null)"
export RAY_AUTH_TOKEN
# Importing Ray on all nodes at once from a shared file system takes its time. Agents that choose
# their ports would have to tell them within 15 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
ports=(--dashboard-agent-grpc-port=52366 --runtime-env-agent-port=52367 --metrics-export-port=8080)
# Once the driver has ended there is nothing left to wait for.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
ulimit -n "$(ulimit -Hn)"

# Slurm runs this script on the first node, and so is the driver, whose process id is kept here.
address="$SLURMD_NODENAME:6379"
driver="$(mktemp)"

# shellcheck disable=SC2317,SC2329  # called by the traps below
stop() {
    trap '' USR1 TERM INT # a second signal would end the driver without a checkpoint
    echo "== $1: asking for a checkpoint"
    notice="$1"
    kill -TERM "$(cat "$driver")" || kill -TERM "$tasks" || true
}
notice="" tasks=""
trap 'stop "the time is over"' USR1
trap 'stop "cancelled"' TERM INT

# A node gives up where Ray needs more than 30 s to start, as it may the first time from a cold file
# system. 'ray symmetric-run' then ends with 0 all the same, and the driver has not begun.
status=1
for _ in 1 2 3; do
    [ -z "$notice" ] || break
    # --kill-on-bad-exit, --wait: neither Ray nor the nodes outlive the driver, nor it one of them. To
    # stop may take a busy node half a minute; one that is killed at it would fail the whole job.
    # shellcheck disable=SC2016  # expanded by the shell that becomes the driver
    srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 --wait=60 \
        ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats "${ports[@]}" -- \
        env RAY_ADDRESS="$address" bash -c 'echo $$ >"$0"; exec "$@"' "$driver" \
        python jobs/train.py --recipe jobs/recipes/tulu3_8b.yaml "$@" &
    tasks=$!
    wait "$tasks" && status=0 || status=$?
    if [ -n "$notice" ]; then # a trapped signal ends 'wait', and not what is waited for
        wait "$tasks" && status=0 || status=$?
        break
    fi
    [ ! -s "$driver" ] || break
    echo "== Ray did not start on all nodes; see above"
    status=1
done
rm -f "$driver"

if [ "$notice" = "the time is over" ] && [ "$status" -ne 0 ]; then
    echo "== going back to the queue, and on from the newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # Slurm ends this script; an end of its own could be taken for that of the job
fi
exit "$status"
