#!/bin/bash
# A training on the GPU nodes of Perlmutter (NERSC), one process per A100, 4 on a node:
#
#     sbatch --account=PROJECT --nodes=8 perlmutter.sh recipe.yaml runs/mine
#
# Sources of the settings: https://docs.nersc.gov/jobs/affinity/, https://docs.nersc.gov/machinelearning/pytorch/,
# nodes: https://docs.nersc.gov/systems/perlmutter/architecture/
# Requeueing and resuming: see generic.sh. With --qos=preempt the job is cheaper and may be stopped after two hours
# (https://docs.nersc.gov/jobs/policy/); nothing else needs to change.

#SBATCH --job-name=ramify
#SBATCH --nodes=1
#SBATCH --constraint=gpu
#SBATCH --qos=regular
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --output=ramify-%j.log
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
RECIPE=${1:?usage: sbatch --account=PROJECT perlmutter.sh RECIPE RUN}
RUN=${2:?usage: sbatch --account=PROJECT perlmutter.sh RECIPE RUN}

module load python
module load nccl # with the plugin for the Slingshot network; without it NCCL uses TCP between nodes
source activate "${RAMIFY_ENV:?set RAMIFY_ENV to the conda environment that has ramify and torch for CUDA}"

# the secret that every rank must prove to know, see docs/clusters.md, Security
export RAMIFY_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export MASTER_ADDR=$(hostname)
export MASTER_PORT=29500 # GPU nodes are not shared
export NCCL_SOCKET_IFNAME=hsn
# 64 cores with two threads each: 32 threads, 16 cores for every rank
export SLURM_CPU_BIND=cores
export OMP_NUM_THREADS=16

# "none": every rank can access the 4 GPUs of its node; it selects its own by its local rank
status=0
srun --gpu-bind=none --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    python -m ramify train "$RECIPE" --run "$RUN" --continue || status=$?

if [ "$status" -eq 75 ]; then
    echo "stopped before the end: requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
