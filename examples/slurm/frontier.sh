#!/bin/bash
# A training on Frontier (OLCF), one process per logical GPU, 8 on a node:
#
#     sbatch --account=PROJECT --nodes=16 frontier.sh recipe.yaml runs/mine
#
# Sources of the settings: https://docs.olcf.ornl.gov/software/analytics/pytorch_frontier.html
# Nodes: https://docs.olcf.ornl.gov/systems/frontier_user_guide.html#frontier-compute-nodes
# Requeueing and resuming: see generic.sh.

#SBATCH --job-name=ramify
#SBATCH --nodes=2
#SBATCH --partition=batch
#SBATCH --time=02:00:00
#SBATCH --output=ramify-%j.log
# other messages for the rendezvous of large transfers, faster for RCCL; goes with FI_CXI_RDZV_PROTO below
#SBATCH --network=disable_rdzv_get
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
RECIPE=${1:?usage: sbatch --account=PROJECT frontier.sh RECIPE RUN}
RUN=${2:?usage: sbatch --account=PROJECT frontier.sh RECIPE RUN}

module load PrgEnv-gnu
module load miniforge3
module load rocm/7.1.1
module load craype-accel-amd-gfx90a
# without the plugin RCCL uses TCP between nodes; the module sets NCCL_* and FI_CXI_* for the Slingshot network
module load rccl-net-plugin
# an environment on Lustre or, faster to start from, unpacked on the NVMe of the nodes with sbcast; not on NFS
source activate "${RAMIFY_ENV:?set RAMIFY_ENV to the conda environment that has ramify and torch for ROCm}"

# the secret that every rank must prove to know, see docs/clusters.md, Security
export RAMIFY_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export MASTER_ADDR=$(hostname -i)
export MASTER_PORT=3442
export NCCL_SOCKET_IFNAME=hsn0 # of the Slingshot network; hsn0,hsn1,hsn2,hsn3 where that does not hang
export FI_CXI_RDZV_PROTO=alt_read
# MIOpen's database in memory of the node: many ranks cannot lock one file on a shared file system
export MIOPEN_USER_DB_PATH=/tmp/miopen-$SLURM_JOB_ID
export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
# 64 cores, of which Slurm reserves the first of each of the 8 groups that share a cache: 7 remain for every rank
export OMP_NUM_THREADS=7

# "closest": each rank on the 7 cores closest to its GPU, and only that GPU is visible to it.
# srun, not torchrun, which would bind all 8 ranks of a node to one core
status=0
srun --ntasks-per-node=8 --cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest --kill-on-bad-exit=1 \
    python -m ramify train "$RECIPE" --run "$RUN" --continue || status=$?

if [ "$status" -eq 75 ]; then
    echo "stopped before the end: requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
