#!/bin/sh
# Everything that docs/gradient_flow.md shows, in about half an hour of one CPU core:
#   sh docs/gradient_flow.sh [FOLDER]
# Cells that are finished are kept, so it goes on where it was stopped.
set -eu
out=${1:-runs/gradient_flow}
sweep="python -m spiketriton.sweep docs/gradient_flow.toml"
untrained="train.max_steps=1 data.test_images=64 data.train_images=640"

# (a) norm against layer, before training
$sweep $untrained model.depth=10,20,50 neuron.kind=if,lif \
    neuron.surrogate.width=0.1,0.2,0.42,1,2,4,10 --out "$out/a"
# (b) norm against time step, with and without the gradient through the reset
$sweep $untrained neuron.kind=if,lif neuron.reset=hard,soft neuron.detach_reset=true,false \
    neuron.surrogate.width=0.42,1 --out "$out/b"
# (e) batch norm of the currents on and off, before training
$sweep $untrained model.norm=bn,none neuron.kind=if,lif \
    neuron.surrogate.width=0.2,0.42,1,2,4,auto --out "$out/e"
# (c) accuracy after 200 steps against the width
$sweep train.optimizer=adamw neuron.kind=lif,if neuron.surrogate.width=auto,0.2,0.42,1,2,4,10 \
    seed=0,1 --out "$out/c_adamw"
sgd="train.optimizer=sgd train.lr=0.1"
$sweep $sgd neuron.surrogate.width=auto,0.2,0.42,0.587,0.73,1,2,4,10 seed=0,1 \
    --out "$out/c_sgd_lif"
$sweep $sgd neuron.kind=if train.max_steps=300 \
    neuron.surrogate.width=auto,0.2,0.415,0.5,0.55,0.6,1,2 --out "$out/c_sgd_if"
# (d) a net that the rule was not fitted to: a narrow ResNet-20 with plain blocks, 14x14 images
resnet="model.name=resnet20 model.width=8 data.image_size=14 train.batch_size=32 train.max_steps=100
    data.test_images=1000"
$sweep $resnet $sgd neuron.surrogate.width=auto,0.2,0.613,1,4 seed=0,1,2 --out "$out/d_sgd"
$sweep $resnet train.lr=2e-3 neuron.surrogate.width=auto,0.2,1,10 seed=0,1,2 \
    --out "$out/d_adamw"
