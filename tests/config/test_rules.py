"""Keys that have no effect or contradict each other are refused; the ANN twin is one word away."""

import pytest

from spiketriton.config import recipe_from_toml, replace, to_toml
from spiketriton.config.recipe import values_of
from spiketriton.config.rules import idle
from tests.config.support import GOOD, mine, refused


def plain_net(extra=""):
    return '[data]\nname = "digits"\n[model]\nname = "plain"\n' + extra


def with_data(line: str, name: str = "n_mnist") -> str:
    """A recipe for recordings, with a line in its table of data."""
    return f'[data]\nname = "{name}"\n{line}\n[model]\nname = "resnet8"\n'


BAD_COMBINATIONS = {
    "block without skips": (plain_net('block = "sew"'), ['model.block = "sew"', '"plain"']),
    "preact blocks of net7b": (
        '[data]\nname = "digits"\n[model]\nname = "net7b"\nblock = "preact"',
        ['model.block = "preact" is not for model.name = "net7b"', '"ms"'],
    ),
    "preact blocks without skips": (plain_net('block = "preact"'), ['model.block = "preact"']),
    "preact blocks have no last norm": (
        GOOD + 'block = "preact"\nresidual_gain = 0.5',
        ["model.residual_gain = 0.5", 'model.block is "preact"'],
    ),
    "straight-through shortcuts around no neuron": (
        GOOD + 'block = "ms"\nshortcut_gradient = "straight_through"',
        ['model.shortcut_gradient = "straight_through"', 'model.block is "ms"'],
    ),
    "a start of norms that are not there": (
        GOOD + 'norm = "none"\nnorm_gain = 0.5',
        ["model.norm_gain = 0.5", 'model.norm is "none"'],
    ),
    "accumulate does not divide": (
        GOOD + "[train]\nbatch_size = 10\naccumulate = 3",
        ["train.accumulate = 3", "train.batch_size = 10", "a divisor"],
    ),
    "micro_batch does not divide": (
        GOOD + "[train]\nbatch_size = 10\nmicro_batch = 3",
        ["train.micro_batch = 3", "train.batch_size = 10", "a divisor"],
    ),
    "micro_batch and accumulate": (
        GOOD + "[train]\nmicro_batch = 2\naccumulate = 2",
        ["train.micro_batch = 2 and train.accumulate = 2", "one of them"],
    ),
    "automatic micro_batch and accumulate": (
        GOOD + '[train]\nmicro_batch = "auto"\naccumulate = 2',
        ['train.micro_batch = "auto" and train.accumulate = 2'],
    ),
    "checkpoint_blocks and compile": (
        GOOD + "checkpoint_blocks = true\n[train]\ncompile = true",
        ["model.checkpoint_blocks = true", "train.compile = true", "one of them"],
    ),
    "checkpoint_blocks without blocks": (
        plain_net("checkpoint_blocks = true"),
        ["model.checkpoint_blocks = true", 'model.name is "plain"'],
    ),
    "max_skips without skip": (
        GOOD + "[train]\nmax_skips = 10",
        ["train.max_skips = 10", 'train.nonfinite is "stop"'],
    ),
    "plif that leaves nothing": (
        GOOD + '[neuron]\nkind = "plif"\ntau = 1',
        ["neuron.tau = 1.0", "a number above 1"],
    ),
    "nesterov without momentum": (
        GOOD + '[train]\noptimizer = "sgd"\nmomentum = 0\nnesterov = true',
        ["train.nesterov = true", "train.momentum above 0"],
    ),
    "reset above the threshold": (
        GOOD + "[neuron]\nv_reset = 1",
        ["neuron.v_reset = 1.0", "below neuron.v_threshold = 1.0"],
    ),
    "v_reset with soft reset": (
        GOOD + '[neuron]\nreset = "soft"\nv_reset = -1',
        ["neuron.v_reset = -1.0 has no effect", 'neuron.reset is "soft"'],
    ),
    "stem of a small resnet": (GOOD + 'stem = "cifar"', ["model.stem", 'model.name is "resnet8"']),
    "depth of a resnet": (GOOD + "depth = 20", ["model.depth = 20", 'model.name is "resnet8"']),
    "a folder of validation without folders": (
        GOOD.replace("[data]", '[data]\nvalidation = "val"', 1),
        ['data.validation = "val"', "digits has no folders", "from 0, below 1"],
    ),
    "a folder of validation beside a random split": (
        GOOD.replace(
            'name = "digits"', 'name = "eventfolder"\nsplit = "random90"\nvalidation = "val"', 1
        ),
        [
            'data.validation = "val"',
            'eventfolder has no folders of splits with data.split = "random90"',
        ],
    ),
    "classes made equal twice": (
        GOOD.replace("[data]", '[data]\nsampler = "balanced"', 1)
        + '[loss]\nclass_weights = "balanced"',
        ['data.sampler = "balanced"', 'loss.class_weights = "balanced"', "one of them"],
    ),
    "patience without validation": (
        GOOD + "[train]\npatience = 3",
        ["train.patience = 3", "images held out", "data.validation is 0.0"],
    ),
    "milestones that fall": (
        GOOD + '[train]\nschedule = "step"\nmilestones = [0.7, 0.5]',
        ["train.milestones = [0.7, 0.5]", "shares that rise"],
    ),
    "milestones of a cosine": (
        GOOD + '[train]\nschedule = "cosine"\nmilestones = [0.5]',
        ["train.milestones = [0.5] has no effect", 'train.schedule is "cosine"'],
    ),
    "gamma of a cosine": (GOOD + "[train]\ngamma = 0.1", ["train.gamma = 0.1 has no effect"]),
    "a milestone at the end": (
        GOOD + '[train]\nschedule = "step"\nmilestones = [1]',
        ["train.milestones = [1]", "numbers from 0, below 1"],
    ),
    "variant without imagenette": (
        'data.name = "digits"\ndata.variant = "320px"\nmodel.name = "mlp"',
        ["data.variant", 'data.name is "digits"'],
    ),
    "classes without synthetic": (
        'data.name = "digits"\ndata.classes = 10\nmodel.name = "mlp"',
        ["data.classes", 'data.name is "digits"'],
    ),
    "bins of images": (
        GOOD.replace('"digits"', '"digits"\nbins = "time"'),
        ["data.bins", '"digits"'],
    ),
    "roll of images": (
        GOOD + "[data.augmentation]\nroll = 1",
        ["data.augmentation.roll", '"digits"'],
    ),
    "erasing in recordings": (
        with_data("augmentation.erasing = 0.1"),
        ["data.augmentation.erasing = 0.1", '"n_mnist"'],
    ),
    "crops of small images": (
        GOOD + "[data.augmentation]\ncrop_scale = [0.08, 1]",
        ["data.augmentation.crop_scale = [0.08, 1.0] has no effect", '"digits"'],
    ),
    "crops without augmentation": (
        with_data('augment = "none"\naugmentation.crop_scale = [0.08, 1]', name="imagefolder"),
        ["data.augmentation.crop_scale", 'data.augment is "none"'],
    ),
    "crops that shrink": (
        with_data("augmentation.crop_scale = [0.9, 0.5]", name="imagefolder"),
        ["data.augmentation.crop_scale = [0.9, 0.5]", "two shares", "the larger one last"],
    ),
    "one share of a crop": (
        with_data("augmentation.crop_scale = [0.9]", name="imagefolder"),
        ["data.augmentation.crop_scale = [0.9]", "two shares"],
    ),
    "crops of nothing": (
        with_data("augmentation.crop_scale = [0, 1]", name="imagefolder"),
        ["data.augmentation.crop_scale", "numbers above 0, at most 1"],
    ),
    "a check of images in memory": (
        with_data('check = "full"', name="digits"),
        ['data.check = "full" has no effect', '"digits"'],
    ),
    "broken files that nobody looks for": (
        with_data('check = "off"\nbroken = "skip"', name="imagefolder"),
        ['data.broken = "skip" has no effect', 'data.check is "off"'],
    ),
    "a check in other words": (
        with_data("check = true", name="imagefolder"),
        ["data.check = true", 'accepted: "fast", "full", "off"'],
    ),
    "a folder for what is not checked": (
        with_data('check = "off"\ncache = "x"', name="imagefolder"),
        ['data.cache = "x" has no effect', 'data.check is "off"'],
    ),
    "a negative alpha": (GOOD + "[train]\nmixup = -1", ["train.mixup = -1", "from 0 to 1000"]),
    "an alpha in words": (GOOD + '[train]\ncutmix = "yes"', ['train.cutmix = "yes"', "a number"]),
    "a seed without a random split": (
        with_data("split_seed = 1"),
        ["data.split_seed = 1", 'data.split is "official"'],
    ),
    "a sensor that is known": (
        with_data('sensor = "34x34"'),
        ["data.sensor", 'data.name is "n_mnist"'],
    ),
    "a split that cifar10_dvs lacks": (
        with_data("", name="cifar10_dvs"),
        ['data.split = "official"', "cifar10_dvs", 'accepted: "first100", "random90"'],
    ),
    "a split that n_mnist lacks": (
        with_data('split = "random90"'),
        ['data.split = "random90"', "n_mnist", 'accepted: "official"'],
    ),
    "a sensor in other words": (
        with_data('sensor = "346 x 260"', name="eventfolder"),
        ['data.sensor = "346 x 260"', 'accepted: "auto", or pixels as "346x260"'],
    ),
    "no frame is left": (
        with_data("augmentation.delete = 4"),
        ["data.augmentation.delete = 4", "time_steps = 4", "from 0 to 3"],
    ),
    "blocks of vggsnn": (
        with_data("").replace('"resnet8"', '"vggsnn"\nblock = "sew"'),
        ['model.block = "sew"', 'model.name = "vggsnn"'],
    ),
    "momentum with adamw": (GOOD + "[train]\nmomentum = 0.9", ["train.momentum", '"adamw"']),
    "eps with sgd": (GOOD + '[train]\noptimizer = "sgd"\neps = 1e-12', ["train.eps", '"sgd"']),
    "nesterov with adamw": (GOOD + "[train]\nnesterov = false", ["train.nesterov", '"adamw"']),
    "tet_lambda with cross-entropy": (
        GOOD + "[loss]\ntet_lambda = 0.05",
        ["loss.tet_lambda", 'loss.kind is "cross_entropy"'],
    ),
    "tau without a leak": (GOOD + '[neuron]\nkind = "if"\ntau = 2', ["neuron.tau", '"if"']),
    "decay_input without a leak": (
        GOOD + '[neuron]\nkind = "if"\ndecay_input = true',
        ["neuron.decay_input = true", '"if"'],
    ),
    "detach_reset without reset": (
        GOOD + '[neuron]\nreset = "none"\ndetach_reset = true',
        ["neuron.detach_reset", 'neuron.reset is "none"'],
    ),
    "monitor off and configured": (
        GOOD + "[monitor]\nenabled = false\nevery = 5",
        ["monitor.every = 5", "monitor.enabled is false"],
    ),
    "wandb without monitor": (
        GOOD + '[monitor]\nenabled = false\nwandb = "offline"',
        ['monitor.wandb = "offline"', "monitor.enabled is false"],
    ),
    "a project without wandb": (
        GOOD + '[monitor]\nwandb_project = "mine"',
        ['monitor.wandb_project = "mine" has no effect', 'monitor.wandb is "off"'],
    ),
    "wandb in other words": (
        GOOD + "[monitor]\nwandb = true",
        ["monitor.wandb = true", 'accepted: "off", "offline", "online"'],
    ),
    "tensorboard without monitor": (
        GOOD + "[monitor]\nenabled = false\ntensorboard = true",
        ["monitor.tensorboard = true", "monitor.enabled is false"],
    ),
}


@pytest.mark.parametrize(("text", "said"), BAD_COMBINATIONS.values(), ids=BAD_COMBINATIONS)
def test_keys_that_do_not_go_together_are_named(text, said):
    refused(said, recipe_from_toml, text, "mine")


@pytest.mark.parametrize("norm", ["bn", "tdbn", "tebn", "none"])
@pytest.mark.parametrize("memory", ["standard", "packed"])
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


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=12", "train.accumulate=3"],
        ["train.batch_size=12", "train.micro_batch=4"],
        ["train.micro_batch=auto"],
        ["model.checkpoint_blocks=true"],
        ["model.name=resnet50", "model.checkpoint_blocks=true", "model.stem=cifar"],
        ["train.compile=true"],
        ["neuron.tau=1"],
        ["neuron.kind=plif", "neuron.tau=1.001"],
        ["neuron.v_reset=0.999"],
        ["neuron.reset=soft", "neuron.v_reset=0"],
        ["neuron.reset=soft", "neuron.detach_reset=false"],
        ["train.optimizer=sgd", "train.momentum=0.1", "train.nesterov=true"],
        ["train.optimizer=sgd", "train.momentum=0"],
        ["train.nonfinite=skip", "train.max_skips=1"],
        ["model.name=mlp", "model.block=plain", "model.depth=2"],
        ["model.residual_gain=0", "model.residual_bias=0.25"],
        ["model.residual_gain=0.2", "model.block=ms"],
        ["model.name=mlp", "model.start=identity"],
        ["data.name=imagefolder", "data.check=full", "data.broken=skip", "data.cache=known"],
        ["data.augmentation.cutout=3", "data.augmentation.erasing=0.5", "train.mixup=0.2"],
        ["data.name=n_mnist", "data.bins=time", "data.augmentation.delete=3"],
        ["data.name=eventfolder", "data.sensor=346x260", "data.split=random90"],
        ["data.name=cifar10_dvs", "data.split=random90", "data.split_seed=7"],
        ["data.name=digits_dvs", "data.format=aedat3", "model.name=vggsnn"],
        ["model.name=net7b", "model.block=sew", "model.residual_gain=0"],
    ],
    ids=str,
)
def test_keys_that_go_together_are_accepted(overrides):
    values = values_of(replace(mine(), *overrides))
    for override in overrides:
        dotted, _, value = override.partition("=")
        assert str(values[dotted]).lower().removesuffix(".0") == value


def test_each_idle_key_comes_with_its_reason():
    reasons = idle(values_of(mine()))
    assert reasons["train.momentum"] == 'train.optimizer is "adamw"'
    assert sorted(reasons) == [
        "data.augmentation.crop_scale",
        "data.augmentation.delete",
        "data.augmentation.drop",
        "data.augmentation.flip",
        "data.augmentation.magnitude",
        "data.augmentation.operations",
        "data.augmentation.roll",
        "data.augmentation.rotate",
        "data.augmentation.shear",
        "data.bins",
        "data.broken",
        "data.cache",
        "data.check",
        "data.classes",
        "data.count",
        "data.format",
        "data.sensor",
        "data.split",
        "data.split_seed",
        "data.variant",
        "loss.teacher_weight",
        "loss.temperature",
        "loss.tet_lambda",
        "model.arguments",
        "model.connect",
        "model.depth",
        "model.input",
        "model.start",
        "model.stem",
        "monitor.wandb_project",
        "neuron.beta",
        "neuron.levels",
        "neuron.order",
        "neuron.tau_adaptation",
        "train.gamma",
        "train.max_skips",
        "train.milestones",
        "train.mix_epochs",
        "train.mix_probability",
        "train.momentum",
        "train.nesterov",
    ]
