#!/bin/sh
# Measures all results of docs/data.md. Needs two free cores, 12 GB of memory, 4 GB of disk, and 15 GB for the last part.
#     benchmarks/data.sh results
set -eu
out=${1:-data-results}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
mkdir -p "$out"
for part in mapped adios distributed waiting; do
    $python -m benchmarks.data --parts $part --folder "$out" --out "$out/$part.json"
done
# training from every kind of store, and faults
$python -m pytest -q --junit-xml "$out/tests.xml" tests/train/test_store_forms.py tests/store/test_forms.py \
    tests/store/test_store.py tests/store/test_replace.py tests/store/test_node_memory.py tests/store/test_distributed.py
# 24 million structures, 15 GB of disk for some minutes; skipped with LARGE=0
if [ "${LARGE:-24000000}" != 0 ]; then
    $python -m benchmarks.data --parts scale --large "${LARGE:-24000000}" --folder "$out" --out "$out/scale.json"
fi
