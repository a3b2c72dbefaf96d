#!/bin/sh
# Labels and writes all five corpora into a folder; finished results in it are kept, so it can be stopped and repeated.
#   tools/minicorpora/run_all.sh OUT
# MOLECULES, GPAW, PYMATGEN: Pythons that have PySCF + RDKit + tblite, GPAW, pymatgen (README.md). WORKERS: processes.
set -eu
out=${1:?usage: run_all.sh OUT}
tools=$(dirname "$0")
molecules=${MOLECULES:-python3} gpaw=${GPAW:-/usr/bin/python3} pymatgen=${PYMATGEN:-python3} workers=${WORKERS:-1}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

"$molecules" "$tools/make_ani1x_mini.py" --out "$out" --workers "$workers"
"$molecules" "$tools/make_qm7x_mini.py" --out "$out" --workers "$workers"
"$molecules" "$tools/make_transition1x_mini.py" --out "$out" --workers "$workers"
mkdir -p "$out/first_round"
cp -R "$out"/*_mini "$out/first_round"
for corpus in ani1x qm7x transition1x; do
    "$molecules" "$tools/make_${corpus}_mini.py" --out "$out" --earlier "$out/first_round" --second-round \
        --workers "$workers"
done
"$molecules" "$tools/atom_energies.py" --out "$out"
"$gpaw" "$tools/label_crystals.py" mptrj --out "$out" --workers "$workers"
"$gpaw" "$tools/label_crystals.py" alexandria --out "$out" --workers "$workers"
"$gpaw" "$tools/atom_shift.py" --out "$out"
"$pymatgen" "$tools/make_crystal_files.py" --out "$out" --shift "$out/pbesol_atom_shift.json"
"$molecules" "$tools/check_files.py" --root "$out"
"$molecules" "$tools/check_molecule_forces.py" --root "$out"
"$gpaw" "$tools/check_crystal_forces.py" mptrj --out "$out" zincblende_Ga-As rocksalt_Mg-O perovskite_Sr-Ti-O
"$gpaw" "$tools/check_crystal_forces.py" alexandria --out "$out" rocksalt_Li-Cl zincblende_Al-As fluorite_Sr-F
