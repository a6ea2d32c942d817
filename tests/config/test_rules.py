"""Keys that have no effect or contradict each other are refused; the ANN twin is one word away."""

import pytest

from spiketriton.config import recipe_from_toml, replace, to_toml
from spiketriton.config.recipe import KEYS, idle
from tests.config.support import GOOD, mine, refused

CONTRADICTIONS = {  # overrides of a small recipe -> what the refusal names
    ("model.name=net7b", "model.block=preact"): ['"preact" with model.name = "net7b"', '"plain", "sew", "ms"'],
    ("train.batch_size=10", "train.accumulate=3"): ["train.accumulate = 3", "train.batch_size = 10", "a divisor"],
    ("train.batch_size=10", "train.micro_batch=3"): ["train.micro_batch = 3", "train.batch_size = 10", "a divisor"],
    ("train.micro_batch=auto", "train.accumulate=2"): ['train.accumulate = 2 with train.micro_batch = "auto"', "it: 1"],
    ("model.memory=recomputed",): ['"recomputed" with model.name = "resnet8"', '"standard", "packed"'],
    ("model.name=mlp", "model.memory=recomputed", "train.compile=true"): ['"recomputed" with train.compile', "it: "],
    ("model.checkpoint_blocks=true", "train.compile=true"): ["checkpoint_blocks = true with train.c", "it: false"],
    ("neuron.kind=clif", "neuron.v_reset=-1"): ['v_reset = -1.0 with neuron.kind = "clif"', "it: 0"],
    ("neuron.kind=ilif", "model.memory=packed"): ['"packed" with neuron.kind = "ilif"', 'it: "standard"'],
    ("data.name=n_mnist", "neuron.kind=psn", "data.augmentation.delete=1"): ["delete = 1 with", "it: 0"],
    ("model.name=sequence", "model.recurrent=true", "neuron.kind=sliding_psn"): [
        'model.recurrent = true with neuron.kind = "sliding_psn": it has no step', "accepted with it: false",
    ],
    ("neuron.kind=plif", "neuron.tau=1"): ["neuron.tau = 1.0", "a number above 1"],
    ("neuron.v_reset=1",): ["neuron.v_reset = 1.0", "below neuron.v_threshold = 1.0"],
    ("data.validation=val",): ['data.validation = "val"', "digits has no folders", "from 0, below 1"],
    ("data.name=eventfolder", "data.split=random90", "data.validation=val"): [
        'eventfolder has no folders of splits with data.split = "random90"',
    ],
    ("train.schedule=step", "train.milestones=[0.7, 0.5]"): ["[0.7, 0.5]", "fractions that rise"],
    ("data.name=imagefolder", "data.augmentation.crop_scale=[0.9, 0.5]"): ["[0.9, 0.5]", "the larger one last"],
    ("data.name=imagefolder", "data.augmentation.crop_scale=[0.9]"): ["[0.9]", "two fractions"],
    ("data.name=cifar10_dvs",): ['data.split = "official"', "cifar10_dvs", '"first100", "random90"'],
    ("data.name=spoken_digits", "data.split=random90"): ['"random90"', '"official", or "speaker:NAME"'],
    ("data.name=eventfolder", "data.sensor=346 x 260"): ["346 x 260", 'accepted: "auto", or pixels as "346x260"'],
    ("data.name=n_mnist", "data.augmentation.delete=4"): ["delete = 4", "time_steps = 4", "from 0 to 3"],
}  # fmt: skip

IDLE = {  # overrides, of which the last has no effect -> the key that is why
    ("model.block=preact", "model.residual_gain=0.5"): "model.block",
    ("model.block=ms", "model.shortcut_gradient=straight_through"): "model.block",
    ("model.block=sew", "model.shortcut=spikes"): "model.block",
    ("model.norm=none", "model.norm_gain=0.5"): "model.norm",
    ("model.name=plain", "model.checkpoint_blocks=true"): "model.name",
    ("model.name=plain", "model.block=sew"): "model.name",
    ("model.name=vggsnn", "model.block=plain"): "model.name",
    ("model.stem=cifar",): "model.name",
    ("model.depth=20",): "model.name",
    ("model.recurrent=true",): "model.name",
    ("train.schedule=cosine", "train.milestones=[0.5]"): "train.schedule",
    ("train.gamma=0.1",): "train.schedule",
    ("train.momentum=0.9",): "train.optimizer",
    ("train.optimizer=sgd", "train.eps=1e-12"): "train.optimizer",
    ("neuron.reset=soft", "neuron.v_reset=-1"): "neuron.reset",
    ("neuron.reset=none", "neuron.detach_reset=true"): "neuron.reset",
    ("neuron.kind=if", "neuron.tau=2.5"): "neuron.kind",
    ("neuron.kind=if", "neuron.decay_input=true"): "neuron.kind",
    ("loss.tet_lambda=0.1",): "loss.kind",
    ("data.variant=320px",): "data.name",
    ("data.classes=7",): "data.name",
    ("data.bins=time",): "data.name",
    ("data.augmentation.roll=1",): "data.name",
    ("data.augmentation.crop_scale=[0.08, 1]",): "data.name",
    ("data.broken=skip",): "data.name",
    ("data.name=imagefolder", "data.cache=x"): "data.name",
    ("data.name=n_mnist", "data.augmentation.erasing=0.1"): "data.name",
    ("data.name=n_mnist", "data.sensor=34x34"): "data.name",
    ("data.name=n_mnist", "data.cut_ms=100"): "data.name",
    ("data.name=n_mnist", "data.sequence=rows"): "data.name",
    ("data.sequence=rows", "data.sequence_seed=1"): "data.sequence",
    ("data.augmentation.stretch=0.2",): "data.name",
    ("data.name=spoken_digits", "data.count=raw"): "data.name",
    ("data.name=spoken_digits", "data.image_size=8"): "data.name",
    ("data.name=n_mnist", "data.split_seed=1"): "data.split",
    ("data.name=imagefolder", "data.augment=none", "data.augmentation.crop_scale=[0.08, 1]"): "data.augment",
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "said"), CONTRADICTIONS.items(), ids=str)
def test_keys_that_contradict_each_other_are_named(overrides, said):
    refused(said, replace, mine(), *overrides)


@pytest.mark.parametrize(("overrides", "why"), IDLE.items(), ids=str)
def test_a_key_without_effect_is_refused_with_the_key_that_is_why(overrides, why):
    dotted = overrides[-1].partition("=")[0]
    refused([f"{dotted} = ", "has no effect", f"{why} is "], replace, mine(), *overrides)


@pytest.mark.parametrize(("norm", "memory"), [("tebn", "standard"), ("none", "packed")])
def test_the_ann_twin_of_any_recipe_is_one_word_away(norm, memory):
    recipe = recipe_from_toml(
        GOOD + f'norm = "{norm}"\nmemory = "{memory}"\n[neuron]\nkind = "plif"\ntau = 3.0',
        "mine",
    )
    twin = replace(recipe, "neuron.kind=relu")
    ours, theirs = to_toml(recipe).splitlines(), to_toml(twin).splitlines()
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == [
        ('kind = "plif"', 'kind = "relu"')
    ]


TOGETHER = [
    "train.batch_size=12 train.accumulate=3", "train.batch_size=12 train.micro_batch=4", "train.micro_batch=auto",
    "model.checkpoint_blocks=true", "train.compile=true", "neuron.tau=1", "neuron.kind=plif neuron.tau=1.001",
    "neuron.v_reset=0.999", "neuron.reset=soft neuron.v_reset=0", "neuron.reset=soft neuron.detach_reset=false",
    "train.optimizer=sgd train.momentum=0",
    "train.nonfinite=skip", "model.block=plain model.residual_gain=0 model.residual_bias=0.25",
    "model.residual_gain=0.2 model.block=ms", "model.name=mlp model.start=identity",
    "data.name=imagefolder data.broken=skip", "data.name=n_mnist data.cache=known", "data.augmentation.cutout=3",
    "train.cutmix=1 train.mix_epochs=5", "data.name=n_mnist data.augmentation.delete=3",
    "data.name=eventfolder data.sensor=346x260 data.split=random90", "model.name=net7b model.block=sew",
]  # fmt: skip


@pytest.mark.parametrize("overrides", TOGETHER)
def test_keys_that_go_together_are_accepted(overrides):
    values = replace(mine(), *overrides.split()).values()
    for override in overrides.split():
        dotted, _, value = override.partition("=")
        assert str(values[dotted]).lower().removesuffix(".0") == value


def test_the_conditions_of_keys_are_of_other_keys_and_of_values_that_they_accept():
    for dotted, spec in KEYS.items():
        for said in ("only", "unless"):
            for keys, values in spec.field.metadata[said].items():
                for other in keys.split(" and "):
                    assert other != dotted
                    for value in values if isinstance(values, tuple) else ():
                        assert KEYS[other].check(value) == value


def test_each_idle_key_comes_with_its_reason():
    reasons = idle(mine().values())
    assert reasons["train.momentum"] == 'train.optimizer is "adamw"'
    assert {"loss.tet_lambda", "model.depth", "neuron.levels", "train.gamma"} < reasons.keys()
    assert not {"train.lr", "neuron.tau", "model.residual_gain"} & reasons.keys()


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        (["model.block=plain"], 0),
        (["model.block=plain", "train.optimizer=sgd"], 1),
        (["model.block=ms", "train.optimizer=sgd"], 0),
        (["model.block=sew", "train.optimizer=sgd"], 0),
        (["model.name=mlp", "train.optimizer=sgd"], 1),
        (["model.block=ms", "train.optimizer=sgd", "train.clip_grad_norm=2"], 2),
        (["model.block=plain", "train.optimizer=sgd", "train.clip_grad_norm=0"], 0),
    ],
)
def test_gradients_are_clipped_under_sgd_unless_the_recipe_says_otherwise(changes, limit):
    assert replace(mine(), *changes).clipping == limit


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        (["model.name=resnet56"], 1e-2),
        (["model.name=resnet50", "train.optimizer=sgd"], 0.3),
        (["model.name=mlp"], 2e-3),
        (["model.name=vgg16", "train.optimizer=sgd"], 0.1),
        (["model.name=torch.nn:Identity"], 1e-3),
        (["model.name=resnet56", "train.lr=0.25"], 0.25),
    ],
)
def test_the_default_learning_rate_is_that_of_the_kind_of_network(changes, rate):
    recipe = replace(mine(), *changes)
    assert recipe.peak_lr == rate
    refused(
        ["is above the peak", f"train.lr = {rate}"], replace, recipe, f"train.min_lr={2 * rate}"
    )
