#!/bin/sh
# Measures all results of docs/step.md except the curves. Needs two free cores and 20 minutes; STORES contains the
# prepared stores of the recipe `five`. Models of packages that are not installed are skipped.
#     STORES=stores benchmarks/step.sh results
set -eu
out=${1:-step-results}
stores=${STORES:-stores}
python=${PYTHON:-python}
mkdir -p "$out"
export OMP_NUM_THREADS=1
measure() {
    $python -m ramify bench step paper --datasets qm7x --stores "$stores" --batch 32 "$@"
}
for threads in 1 2; do
    measure train.threads=$threads --precision fp32,bf16 --forces direct,conservative --steps 5 --out "$out/threads-$threads"
done
measure --precision fp32,bf16 --steps 3 --profile --out "$out/profile"
for threads in 1 2; do # needs a C++ compiler
    measure train.threads=$threads train.compile=default --precision fp32 --forces direct,conservative --steps 5 --out "$out/compiled-$threads"
done
measure train.checkpointing=layers --precision fp32 --forces direct,conservative --steps 3 --out "$out/checkpointing"
OMP_NUM_THREADS=1 $python -m benchmarks.step.forms paper --datasets qm7x --stores "$stores" > "$out/forms.json"
cat "$out/forms.json"
$python -m benchmarks.step.compiled five --stores "$stores" > "$out/compiled.json"
cat "$out/compiled.json"
$python -m benchmarks.against "$out/against"
