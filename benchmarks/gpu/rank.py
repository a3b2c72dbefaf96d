"""One rank of the part `ranks` of `benchmarks/gpu.sh`.

NCCL refuses two ranks on one GPU, so that this program selects Gloo for tensors on the GPU, which it copies through the
memory of the host.
"""

import sys
from pathlib import Path

from ramify.bench.scale import run_case
from ramify.parallel.startup.rendezvous import BACKENDS

if __name__ == "__main__":
    BACKENDS["cuda"] = "cpu:gloo,cuda:gloo"
    run_case(Path(sys.argv[1]), Path(sys.argv[2]))
