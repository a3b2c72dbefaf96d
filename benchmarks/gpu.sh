#!/bin/sh
# All measurements on one NVIDIA GPU, in at most eight minutes, on a machine without a network. It needs Python 3.11 or
# later, PyTorch 2.11 or later with CUDA, and the packages of a wheelhouse.
#     benchmarks/gpu.sh --wheels 3.12       # first, where a network is: packages for Python 3.12 on Linux, into wheels/
#     benchmarks/gpu.sh OUT                 # on the GPU machine, with wheels/ in the folder of the checkout
#     benchmarks/gpu.sh OUT --dry           # on any machine: every part on the CPU, to check that it runs
# Results: OUT/gpu.json and the page OUT/gpu.md. PYTHON names the interpreter, WHEELS another folder of wheels; packages
# that the machine has already are not replaced, and nothing is installed outside of a temporary folder.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-wheels}
# the dependencies of the project without PyTorch, and those of its tests and of neighbour lists on the GPU
needed="ase ase-db-backends lmdb orjson pydantic pydantic_core typing_extensions typing-inspection annotated-types
    pyyaml rich markdown-it-py mdurl pygments safetensors typer click shellingham vesin psutil h5py jinja2 markupsafe
    tensorboard hypothesis sortedcontainers pytest pluggy iniconfig pytest-timeout nvalchemi-toolkit-ops warp-lang"
if [ "$1" = --wheels ]; then
    platforms=""
    for version in 39 34 31 28 27 24 17 12 5; do platforms="$platforms --platform manylinux_2_${version}_x86_64"; done
    for name in $needed; do
        # shellcheck disable=SC2086
        $python -m pip download -q --no-deps --only-binary=:all: --python-version "$2" --implementation cp \
            $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -c constraints.txt -d "$wheels" "$name" \
            || echo "no wheel of $name: the parts that need it will say so" >&2
    done
    du -sh "$wheels"
    exit 0
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -d "$wheels" ]; then
    missing=$($python - "$wheels" <<'END'
import sys
from importlib.metadata import distributions
from pathlib import Path

there = {found.name.replace("-", "_").lower() for found in distributions()}
print(*(wheel for wheel in Path(sys.argv[1]).glob("*.whl") if wheel.name.split("-")[0].lower() not in there))
END
    )
    # shellcheck disable=SC2086
    [ -z "$missing" ] || $python -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" $missing
fi
PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}:$site" PYTHONUNBUFFERED=1 $python -m benchmarks.gpu "$@"
