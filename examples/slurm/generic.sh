#!/bin/bash
# A training on any cluster with Slurm, one process per GPU:
#
#     sbatch --nodes=4 generic.sh recipe.yaml runs/mine
#
# Runs until it is finished, in as many jobs as necessary: shortly before the time limit, or when the job is preempted,
# Slurm sends a signal to the ranks, they write a checkpoint and exit with status 75, and the job is requeued. Any other
# failure ends the job; submit it again to resume from the latest checkpoint.

#SBATCH --job-name=ramify
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=ramify-%j.log
# USR1 to the ranks (not to this script: no "B:") five minutes before the end: time for a step, an evaluation and a
# checkpoint, see https://slurm.schedmd.com/sbatch.html#OPT_signal
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
RECIPE=${1:?usage: sbatch generic.sh RECIPE RUN}
RUN=${2:?usage: sbatch generic.sh RECIPE RUN}

# Your modules and environment here:
# module load ...
# source /path/to/venv/bin/activate

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node must not share a port
# the secret that every rank must prove to know, see docs/clusters.md, Security
export RAMIFY_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# each rank on its own cores, https://slurm.schedmd.com/srun.html#OPT_cpu-bind; if one rank dies, the others end too
status=0
srun --cpu-bind=cores --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    python -m ramify train "$RECIPE" --run "$RUN" --continue || status=$?

if [ "$status" -eq 75 ]; then
    echo "stopped before the end: requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
