#!/bin/bash -l
# A training on Aurora (ALCF), one process per tile of a GPU, 12 on a node. Aurora has PBS instead of Slurm:
#
#     qsub -A PROJECT -l select=4 -v PROJECT=PROJECT,RECIPE=recipe.yaml,RUN=runs/mine aurora.sh
#
# Sources of the settings: https://docs.alcf.anl.gov/aurora/data-science/frameworks/pytorch/,
# https://docs.alcf.anl.gov/aurora/data-science/frameworks/oneCCL/ and
# https://docs.alcf.anl.gov/aurora/running-jobs-aurora/
#
# PBS sends no signal before the time limit, so the run has a time limit of its own, ten minutes before that of the
# job. When it stops there with status 75, the job submits another job that resumes the run.

#PBS -N ramify
#PBS -l select=1
#PBS -l place=scatter
#PBS -l walltime=01:00:00
#PBS -l filesystems=home:flare
#PBS -q prod
#PBS -k doe
#PBS -j oe

set -uo pipefail
MINUTES=50 # of the 60 above
SCRIPT=${SCRIPT:-$PBS_O_WORKDIR/aurora.sh} # PBS runs a copy of it
USAGE="usage: qsub -A PROJECT -v PROJECT=PROJECT,RECIPE=recipe.yaml,RUN=runs/mine aurora.sh"
: "${PROJECT:?$USAGE}" "${RECIPE:?$USAGE}" "${RUN:?$USAGE}"
cd "$PBS_O_WORKDIR" || exit 1

module load frameworks
source "${RAMIFY_ENV:-$PBS_O_WORKDIR/venv}/bin/activate" # a virtual environment that has ramify and torch with XCCL

NODES=$(sort -u "$PBS_NODEFILE" | wc -l)
PER_NODE=12
# the secret that every rank must prove to know, see docs/clusters.md, Security
export RAMIFY_SECRET=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export MASTER_ADDR=$(hostname).hsn.cm.aurora.alcf.anl.gov # the address on the Slingshot network
export MASTER_PORT=2345
export ZE_FLAT_DEVICE_HIERARCHY=FLAT # a tile is a device; each rank selects its own by its local rank
# oneCCL over the transport of MPI, and settings that it needs beyond 16 nodes
export CCL_PROCESS_LAUNCHER=pmix
export CCL_ATL_TRANSPORT=mpi
export CCL_KVS_MODE=mpi
export CCL_KVS_USE_MPI_RANKS=1
export CCL_KVS_CONNECTION_TIMEOUT=600
export CCL_CONFIGURATION_PATH=
export CCL_CONFIGURATION=cpu_gpu_dpcpp
export CCL_ZE_CACHE_OPEN_IPC_HANDLES_THRESHOLD=1024
export FI_CXI_DEFAULT_CQ_SIZE=1048576
export FI_CXI_RX_MATCH_MODE=hybrid
export FI_CXI_OFLOW_BUF_SIZE=8388608
export FI_CXI_CQ_FILL_PERCENT=30
export FI_MR_CACHE_MONITOR=disabled
# three cores for each rank on the socket of its GPU, one more for oneCCL; cores 0 and 52 are reserved for the system
CPU_BIND=list:2-4:10-12:18-20:26-28:34-36:42-44:54-56:62-64:70-72:78-80:86-88:94-96
export CCL_WORKER_AFFINITY=5,13,21,29,37,45,57,65,73,81,89,97
export OMP_NUM_THREADS=3

status=0
mpiexec -n $((NODES * PER_NODE)) -ppn $PER_NODE --cpu-bind "$CPU_BIND" \
    python -m ramify train "$RECIPE" --run "$RUN" --continue train.time_limit=$MINUTES || status=$?

if [ "$status" -eq 75 ]; then
    echo "stopped before the end: another job resumes the run"
    qsub -A "$PROJECT" -l select="$NODES" -v PROJECT="$PROJECT",RECIPE="$RECIPE",RUN="$RUN",SCRIPT="$SCRIPT" "$SCRIPT"
fi
exit "$status"
