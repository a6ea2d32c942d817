"""The words of a recipe that several keys and modules know: data sets, networks, kinds of neurons."""

from typing import Literal, get_args

from spiketriton.config.kinds import kinds

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101"]  # either stem
# CIFAR style
SmallResNet = Literal[
    "resnet8", "resnet19", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"
]
PlainNet = Literal["plain", "mlp", "sequence"]  # of any depth, without skip connections
VGG = Literal["vggsnn", "vgg8", "vgg11", "vgg16", "csnn"]  # without skip connections, too
PooledNet = Literal[VGG, "net7b"]
CHAINS = get_args(PlainNet)
SKIPLESS = (*CHAINS, *get_args(VGG))
BLOCK_NETS = (*get_args(ResNet), *get_args(SmallResNet), "net7b")  # made of residual blocks
Block = Literal["plain", "sew", "ms", "preact"]
CLOSABLE = tuple(name for name in get_args(Block) if name != "preact")  # a norm ends their branch
# "auto": what did well in docs/gradient_flow.md; for AdamW on nets from elsewhere torch's 1e-3.
# Rates of nets of residual blocks, of those without skip connections, of others
RATES = {"sgd": (0.3, 0.1, 0.1), "adamw": (1e-2, 2e-3, 1e-3), "muon": (1e-2, 2e-3, 1e-3)}
CLIPPING = {"sgd": 1.0, "adamw": 0.0, "muon": 0.0}

Loss = Literal["cross_entropy", "tet"]

Images = Literal[
    "imagenette",
    "cifar10",
    "cifar100",
    "tiny_imagenet",
    "fashion_mnist",
    "cluttered_fashion_mnist",
    "imagefolder",
    "digits",
    "mnist",
    "synthetic",
]
Events = Literal[
    "dvs_gesture",
    "cifar10_dvs",
    "n_mnist",
    "n_caltech101",
    "dvs_biolab",
    "eventfolder",
    "digits_dvs",
]
EVENTS = get_args(Events)
Sequences = Literal["spoken_digits", "shd", "ssc"]
SEQUENCES = get_args(Sequences)
UNROLLED = ("rows", "columns", "pixels", "permuted")  # how images become sequences
TIME_KEYS = (
    "shift",
    "stretch",
    "mask_steps",
    "mask_channels",
)  # of [data.augmentation], of sequences alone

PHOTOGRAPHS = ("imagenette", "imagefolder")  # of any size, so that crops of them are resized
ARRAYS = tuple(name for name in get_args(Images) if name not in PHOTOGRAPHS)

SPLITS_OF = {
    "dvs_gesture": ("official",),
    "cifar10_dvs": ("first100", "random90"),
    "n_mnist": ("official",),
    "n_caltech101": ("random90",),
    "dvs_biolab": ("official",),
    "eventfolder": ("official", "first100", "random90"),
    "digits_dvs": ("official",),
}


NONE = "-"
"""No teacher, and no weights to begin with."""

LEAKY = tuple(kind.name for kind in kinds().values() if kind.leaks)
PARALLEL = tuple(kind.name for kind in kinds().values() if kind.parallel)
_RESETS = ("hard", "soft", "none")
RESETS_OF = {
    kind.name: ("auto", *(reset for reset in _RESETS if reset in kind.resets))
    for kind in kinds().values()
    if kind.resets
}


class _Elsewhere:
    """Networks `MODULE:NAME`, which are made elsewhere, and some that are named."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __contains__(self, name: object) -> bool:
        return name in self.names or ":" in str(name)


FOREIGN, WITHOUT_BLOCKS = _Elsewhere(), _Elsewhere(*SKIPLESS)
