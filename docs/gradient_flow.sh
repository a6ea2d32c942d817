#!/bin/sh
# Everything that docs/gradient_flow.md shows: about ten hours of one CPU core.
#   sh docs/gradient_flow.sh [FOLDER]
# Cells that are finished are kept, so it continues where it was stopped.
set -eu
out=${1:-runs/gradient_flow}
sweep="python -m spiketriton.sweep docs/gradient_flow.toml"
untrained="train.max_steps=1 data.test_images=64 data.train_images=640"
adamw="train.optimizer=adamw train.lr=1e-3"
sgd="train.optimizer=sgd train.lr=0.1"
width="neuron.surrogate.width"
shape="neuron.surrogate.shape"
seeds="seed=0,1,2"

# (a) norm against layer, before training
$sweep $untrained model.depth=10,20,50 neuron.kind=if,lif $width=0.1,0.2,0.42,1,2,4,10 \
    --out "$out/a"
# (b) norm against time step, with and without the gradient through the reset
$sweep $untrained neuron.kind=if,lif neuron.reset=hard,soft neuron.detach_reset=true,false \
    $width=0.42,1 --out "$out/b"
# (e) batch norm of the currents on and off, before training
$sweep $untrained model.norm=bn,none neuron.kind=if,lif $width=0.2,0.42,1,2,4,auto --out "$out/e"

# net NAME SETTINGS...: accuracy against width, and with the defaults of other libraries, IF and
# LIF: ATan with alpha 2 is 1 / (1 + (pi u)^2), the rectangle of width 1 is 1 where |u| < 1/2, the
# fast sigmoid of slope 25 is 1 / (1 + 25 |u|)^2.
net() {
    name=$1
    shift
    $sweep "$@" neuron.kind=lif,if $width=auto,0.2,0.42,0.6,1,2,4,10 $seeds --out "$out/$name"
    $sweep "$@" neuron.kind=lif,if $shape=atan $width=0.3183 $seeds --out "$out/$name-atan"
    $sweep "$@" neuron.kind=lif,if $shape=rectangle $width=0.5 $seeds --out "$out/$name-rectangle"
    $sweep "$@" neuron.kind=lif,if $width=0.04 $seeds --out "$out/$name-slope25"
}

# (c) accuracy of a plain fully connected net of 20 layers after 300 steps
net c_adamw $adamw
net c_sgd $sgd
# (d) of nets that the rule was not fitted to: spiking ResNets, 8 channels wide, 14x14 images
resnet="model.width=8 data.image_size=14 train.batch_size=32 train.max_steps=150
    data.test_images=1000"
fast_adamw="train.optimizer=adamw train.lr=2e-3"
net d_adamw $resnet model.name=resnet20 $fast_adamw
net d_sgd $resnet model.name=resnet20 $sgd
blocks="$resnet model.name=resnet20 model.block=sew,ms $width=auto,0.2,0.42,1,4"
$sweep $blocks $fast_adamw $seeds --out "$out/blocks_adamw"
$sweep $blocks $sgd $seeds --out "$out/blocks_sgd"
deep="$resnet model.name=resnet56 model.block=plain,sew,ms"
$sweep $deep $width=auto,0.42,1,4 $fast_adamw $seeds --out "$out/deep_adamw"
$sweep $deep $width=auto,0.42,1 $sgd $seeds --out "$out/deep_sgd"
# the main recipe's ResNet-50, small
python -m spiketriton.sweep recipes/imagenette_r50.toml data.name=fashion_mnist data.image_size=16 \
    data.augment=none data.workers=0 data.test_images=1000 model.width=16 time_steps=4 \
    train.precision=fp32 train.epochs=1 train.max_steps=400 train.threads=1 train.log_every=100 \
    model.block=plain,sew,ms $width=auto,1 --out "$out/r50"
# what blocks start at: the small ResNet-50 again, and what auto makes of it
r50_base="python -m spiketriton.sweep recipes/imagenette_r50.toml data.name=fashion_mnist data.image_size=16
    data.augment=none data.workers=0 model.width=16 train.precision=fp32 train.epochs=1 train.batch_size=32
    train.threads=1"
r50_any="$r50_base data.test_images=1000 train.max_steps=400"
r50_sgd="$r50_any time_steps=4 $sgd"
r50="$r50_any time_steps=4 $adamw"
$r50 model.block=plain,sew,ms model.residual_gain=0,0.2,1 $width=0.3,0.6,1,2.5 --out "$out/start"
$r50 model.block=plain model.residual_gain=0 model.residual_bias=0.25 $width=0.6,1 --out "$out/start_bias"
$r50 model.block=plain,sew,ms model.residual_gain=auto $width=auto $seeds --out "$out/start_auto"
$r50 model.block=sew model.residual_gain=0.2 $width=0.3 seed=1,2 --out "$out/start_sew_seeds"
$r50 model.block=ms model.residual_gain=0 $width=0.6 seed=1,2 --out "$out/start_ms_seeds"
half=$(printf %s "$r50" | sed s/=fp32/=bf16/)
$half model.block=ms model.residual_gain=auto $width=auto $seeds --out "$out/start_bf16"
$r50 model.name=resnet101 model.block=plain,sew,ms model.residual_gain=auto $width=auto --out "$out/start_r101"
identity="model.block=plain model.residual_gain=0 model.residual_bias=0.25"
$r50_sgd $identity $width=0.4,0.6,0.8,1 --out "$out/start_sgd"
$r50_sgd $identity train.clip_grad_norm=1 $width=0.4,0.6 --out "$out/start_sgd_clipped"
$r50_any time_steps=4 train.optimizer=sgd train.lr=0.03 $identity $width=0.4,0.6 --out "$out/start_sgd_slow"
$r50_sgd model.block=plain,sew,ms model.residual_gain=auto $width=auto --out "$out/start_auto_sgd"
small_any="model.width=8 data.image_size=14 train.batch_size=32 train.max_steps=600 data.test_images=1000"
small="$small_any $fast_adamw"
$sweep $small model.name=resnet20,resnet56 model.block=plain model.residual_gain=0 model.residual_bias=0.25 \
    $width=1 --out "$out/start_plain"
$sweep $small model.name=resnet20 model.block=plain model.residual_gain=1 $width=0.6,1 --out "$out/start_usual"
$sweep $small model.name=resnet20 model.block=ms model.residual_gain=0,0.2 $width=1 --out "$out/start_ms"
$sweep $small model.name=resnet20 model.block=sew model.residual_gain=0,0.2,1 $width=0.6 --out "$out/start_sew"
$sweep $small model.name=resnet20 model.block=ms model.residual_gain=1 $width=0.6 --out "$out/start_ms_usual"
$sweep $small model.name=resnet20,resnet56 model.block=plain,sew,ms model.residual_gain=auto $width=auto \
    --out "$out/start_small_auto"
$sweep $small model.name=resnet20 model.block=plain,sew,ms model.residual_gain=auto $width=auto seed=1,2 \
    --out "$out/start_r20_seeds"
$sweep $small model.name=resnet20 model.block=sew,ms model.residual_gain=1 $width=0.6 $seeds --out "$out/start_r20_open"
# the grid of ResNet-56, and how open MS blocks start
deeper="$sweep $small model.name=resnet56"
$deeper model.block=sew model.residual_gain=0.2,1 $width=0.3,0.6 --out "$out/grid_sew"
$deeper model.block=ms model.residual_gain=1 $width=0.3,0.6 --out "$out/grid_ms"
$deeper model.block=ms model.residual_gain=0.2 $width=1 --out "$out/grid_ms_closed"
$deeper model.block=sew model.residual_gain=0.2 $width=0.6 seed=1,2 --out "$out/grid_sew_seeds"
$deeper model.block=ms model.residual_gain=0,0.2 $width=0.6 $seeds --out "$out/grid_ms_seeds"
$deeper model.block=plain,sew,ms model.residual_gain=auto $width=auto seed=1,2 --out "$out/grid_auto"
$deeper model.block=plain model.residual_gain=0 model.residual_bias=0.25 $width=1 seed=1 --out "$out/grid_plain"
$sweep $small model.block=plain,sew,ms model.residual_gain=auto $width=auto model.name=resnet110 --out "$out/depth_r110"
$sweep $small model.name=resnet20 model.block=ms model.residual_gain=0.2,0.5 $width=0.6 $seeds --out "$out/open_r20"
$sweep $resnet model.name=resnet20 $fast_adamw model.block=ms model.residual_gain=0.2,0.5 $width=0.6 --out "$out/open_r20_short"
for net in "resnet44 neuron.reset=soft $fast_adamw" "resnet32 $sgd"; do
    opened="$sweep $small_any model.block=ms model.name=$net"
    name=${net%% *}
    $opened model.residual_gain=0.2,1 $width=0.6 --out "$out/open_$name"
    $opened model.residual_gain=auto $width=auto --out "$out/open_auto_$name"
done
# the plain ResNet-50 by width, neuron, optimizer and T: the gradient before training, and the accuracy
start50="$r50_base $untrained $adamw"
$start50 model.block=plain neuron.kind=lif,if time_steps=4,10 model.residual_bias=0 model.residual_gain=1,0.5 \
    $width=0.2,0.4,0.6,1,2.5 --out "$out/r50_norms"
$start50 model.block=sew,ms time_steps=4 model.residual_gain=1,0.2 $width=0.2,0.4,0.6,1,2.5 --out "$out/r50_norms_shortcuts"
for neuron in lif if; do
    case $neuron in lif) bias=0.25 ;; *) bias=0 ;; esac
    for optimizer in adamw sgd; do
        eval "settings=\$$optimizer"
        by="$r50_any $settings model.block=plain neuron.kind=$neuron"
        for T in 4 10; do
            case $T in 4) window="time_steps=4 $seeds" ;; *) window="time_steps=10" ;; esac
            $by $window model.residual_gain=0 model.residual_bias=$bias $width=0.2,0.4,0.6,1 \
                --out "$out/r50_${neuron}_${optimizer}_$T"
            $by $window model.residual_gain=auto $width=auto --out "$out/r50_auto_${neuron}_${optimizer}_$T"
        done
        $by time_steps=4,10 model.residual_gain=1 $width=0.2,0.4 --out "$out/r50_usual_${neuron}_$optimizer"
    done
done
$r50_any $adamw model.block=plain neuron.kind=if time_steps=4,10 model.residual_gain=auto $width=auto \
    neuron.surrogate.hold=false seed=0,1 --out "$out/r50_if_free"
# plain blocks whose threshold a spike does not reach
short="$sweep model.width=8 data.image_size=14 train.batch_size=32 train.max_steps=300 data.test_images=1000 $fast_adamw
    model.name=resnet20 model.block=plain"
for neuron in neuron.decay_input=true neuron.v_threshold=2.0; do
    $short $neuron model.residual_gain=auto $width=auto --out "$out/lifted_${neuron#neuron.}"
done
$short neuron.decay_input=true model.residual_gain=1 $width=auto --out "$out/lifted_usual"
$short neuron.decay_input=true model.residual_gain=0 model.residual_bias=1,1.5 $width=1 --out "$out/lifted_fixed"
$sweep $resnet model.name=resnet56 model.block=sew $fast_adamw model.residual_gain=0.35 $width=0.6,0.96 \
    --out "$out/start_sew56"
$sweep $resnet model.name=resnet56 model.block=sew $fast_adamw model.residual_gain=0.5,0.7,1 $width=0.42 \
    --out "$out/start_sew56_open"
# plain nets that start as the identity
$sweep $adamw model.depth=10,20,50 model.start=kaiming,identity $width=0.42,1,2 --out "$out/identity_adamw"
for optimizer in adamw sgd; do
    eval "settings=\$$optimizer"
    $sweep $settings model.depth=50 model.start=auto $width=auto --out "$out/identity_auto_$optimizer"
done
$sweep $sgd model.depth=20,50 model.start=kaiming,identity $width=0.2,0.42,1 --out "$out/identity_sgd"
# nets that the rule was not made on, and what fixed settings reach there
held="$sweep $small model.residual_gain=auto $width=auto"
plif="model.name=resnet32 model.block=ms neuron.kind=plif"
$held $plif --out "$out/held_plif"
$sweep $small $plif model.residual_gain=1 $width=0.6 --out "$out/held_plif_usual"
$sweep $small $plif model.residual_gain=0.2 $width=0.6,1 --out "$out/held_plif_closed"
soft="model.name=resnet44 model.block=sew neuron.reset=soft"
$held $soft --out "$out/held_soft"
$sweep $small $soft model.residual_gain=1 $width=0.3,0.6 --out "$out/held_soft_usual"
$sweep $small $soft model.residual_gain=0.2 $width=0.6 --out "$out/held_soft_closed"
digits="$sweep model.name=resnet44 model.width=8 data.name=digits data.image_size=8 data.test_images=0
    train.batch_size=32 train.epochs=20 train.max_steps=400 $fast_adamw"
$digits model.block=ms model.residual_gain=auto $width=auto --out "$out/held_digits"
$digits model.block=ms model.residual_gain=1 $width=0.6 --out "$out/held_digits_usual"
$digits model.block=ms model.residual_gain=0.2 $width=0.6,1 --out "$out/held_digits_closed"
# the same for how open MS blocks of two layers start: chosen before any of them was trained
opened="model.block=ms model.residual_gain=auto $width=auto"
fixed="model.block=ms model.residual_gain=0,0.2,1 $width=0.6"
for net in "$r50 model.name=resnet34" "$sweep $small model.name=resnet32 neuron.kind=if time_steps=8" \
    "$sweep $small_any $sgd model.name=resnet44 neuron.kind=plif" \
    "$(printf %s "$digits" | sed s/resnet44/resnet56/) neuron.reset=soft"; do
    name=$(printf %s "$net" | grep -o 'resnet[0-9]*')
    $net $opened --out "$out/held_ms_$name"
    $net $fixed --out "$out/held_ms_${name}_fixed"
done
plain_digits="$digits model.block=plain $seeds"
$plain_digits model.residual_gain=auto $width=auto --out "$out/held_digits_plain"
$plain_digits model.residual_gain=0 model.residual_bias=0.25 $width=0.6,1 --out "$out/held_digits_plain_fixed"
paper="$r50_any model.block=plain neuron.kind=if time_steps=10 $adamw"
$paper model.residual_gain=auto $width=auto --out "$out/held_paper"
$paper model.residual_gain=0 $width=0.2,0.4,0.7,1 --out "$out/held_paper_fixed"
$paper model.residual_gain=0 model.residual_bias=0,0.25 $width=0.47 --out "$out/held_paper_bias"
# the same for the rule of plain blocks that counts within a time step and holds
for net in "resnet44 neuron.reset=soft" "resnet32 neuron.kind=plif"; do
    plain="model.block=plain model.name=$net"
    name=${net%% *}
    $held $plain --out "$out/held_$name"
    $sweep $small $plain model.residual_gain=0 model.residual_bias=0.25 $width=0.6,1 --out "$out/held_${name}_fixed"
done
by_sgd="$sweep $small_any model.name=resnet32 model.block=plain $sgd"
$by_sgd model.residual_gain=auto $width=auto --out "$out/held_sgd"
$by_sgd model.residual_gain=0 model.residual_bias=0.25 $width=0.6,0.9 --out "$out/held_sgd_fixed"
sew_by_sgd="$sweep $small_any model.name=resnet32 model.block=sew $sgd"
$sew_by_sgd model.residual_gain=auto $width=auto --out "$out/held_sgd_sew"
$sew_by_sgd model.residual_gain=0.2,1 $width=0.6 --out "$out/held_sgd_sew_fixed"
for optimizer in adamw sgd; do
    eval "settings=\$$optimizer"
    $sweep $settings model.depth=50 model.start=identity $width=0.52,0.62 --out "$out/held_identity_$optimizer"
done
# ten epochs of the small ResNet-50: MS blocks, plain blocks, the ANN twin
whole="data.name=fashion_mnist data.image_size=16 data.augment=none data.workers=0 data.test_images=10000
    model.width=16 time_steps=4 train.precision=fp32 train.epochs=10 train.batch_size=128 train.threads=1"
train="python -m spiketriton.train"
$train recipes/imagenette_r50.toml $whole model.block=ms --run-dir "$out/ms"
$train recipes/imagenette_r50.toml $whole model.block=plain --run-dir "$out/plain"
$train recipes/imagenette_r50.toml $whole model.block=plain seed=1 --run-dir "$out/plain_1"
$train recipes/imagenette_r50.toml $whole model.block=plain neuron.surrogate.hold=false --run-dir "$out/plain_fixed"
$train recipes/imagenette_r50_ann.toml $whole --run-dir "$out/ann"
python -m spiketriton.evaluate "$out/ms" --against "$out/plain" "$out/plain_1" "$out/plain_fixed" "$out/ann"
# two hundred more steps of the plain one with a fixed width, with narrower surrogates
for w in 0.2 0.3 0.51; do
    $train recipes/imagenette_r50.toml $whole model.block=plain model.residual_gain=0 model.residual_bias=0.25 \
        $width=$w data.test_images=2000 train.init_from="$out/plain_fixed" train.epochs=1 train.lr=3e-4 \
        train.max_steps=200 --run-dir "$out/plain_fixed_$w"
done
# (f) how deep a plain net still trains
depths="model.depth=10,20,30,50 $seeds"
$sweep $adamw $depths $width=auto,0.42,1,4,10 --out "$out/f_adamw"
$sweep $sgd $depths $width=auto,0.42,0.6,1,4 --out "$out/f_sgd"
# a width for each layer
per_layer="neuron.kind=lif,if $width=auto_per_layer $seeds"
$sweep $adamw $per_layer --out "$out/layers_adamw"
$sweep $sgd $per_layer --out "$out/layers_sgd"
$sweep $resnet model.name=resnet20 $fast_adamw $per_layer --out "$out/layers_r20_adamw"
$sweep $resnet model.name=resnet20 $sgd $per_layer --out "$out/layers_r20_sgd"
# what of the image survives depth (the list "overlap"), and whether batches agree
probe="python -m spiketriton.diagnose docs/gradient_flow.toml --json --batches 4 $width=1"
for kind in lif if; do
    for depth in 10 20 50; do
        $probe neuron.kind=$kind model.depth=$depth >"$out/overlap_${kind}_$depth.json"
    done
done
for net in resnet20 resnet56; do
    for block in plain sew ms; do
        $probe model.width=8 data.image_size=14 model.name=$net model.block=$block \
            >"$out/overlap_${net}_$block.json"
    done
done
for depth in 10 20 30 50; do python docs/gradient_agreement.py model.depth=$depth; done
