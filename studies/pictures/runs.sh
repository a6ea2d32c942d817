#!/bin/sh
# Draws the pictures of docs/img that come from runs: sh studies/pictures/runs.sh (some three minutes on two cores).
# recording.py (a minute), first_steps.py (half a minute) and schematics.py beside it, and other studies, draw the others.
set -e
cd "$(dirname "$0")/../.."
out=${1:-$(mktemp -d)}
spiketriton diagnose digits_rows neuron.kind=lif --out "$out"
spiketriton train quickstart --run-dir "$out/LIF"
spiketriton train quickstart neuron.kind=if --run-dir "$out/IF"
spiketriton train quickstart neuron.kind=relu --run-dir "$out/ANN twin"
spiketriton convert "$out/ANN twin" --steps 64 --run-dir "$out/twin, balanced"
spiketriton convert "$out/ANN twin" --method calibrated --steps 8 --run-dir "$out/twin, calibrated"
spiketriton evaluate "$out/LIF" --steps 1,2,4,8,16,32,64 --against "$out/IF" "$out/ANN twin" "$out/twin, balanced" "$out/twin, calibrated"
cp "$out/diagnosis.png" docs/img/diagnosis.png
for name in curves gradients; do cp "$out/LIF/$name.png" "docs/img/quickstart_$name.png"; done
for name in accuracy energy; do cp "$out/LIF/evaluation/$name.png" "docs/img/quickstart_$name.png"; done
python studies/evaluation/run.py "$out/LIF"
