#!/bin/sh
# Measures all results of docs/scaling.md that depend on the machine. Needs two free cores and seven minutes.
#     benchmarks/scaling.sh results
set -eu
out=${1:-scaling-results}
ramify=${RAMIFY:-ramify}
$ramify bench scale paper --branches 2 --ranks 1,2 --placements replicated,per-branch,per-branch+shard \
    --batch 24 --total 24 --warmup 1 --steps 5 --calibrate --out "$out/scale"
$ramify bench predict paper --sizes paper --measured "$out/scale/scale.json" --out "$out/here"
$ramify bench memory paper optimizer.ema=0 --check 4 --out "$out/memory"
for machine in frontier perlmutter aurora; do
    $ramify bench predict paper --sizes paper --machine $machine train.sampling=equal --out "$out/$machine"
done
