"""Small networks in the manner of public code: SpikingJelly's models and examples, snnTorch's tutorials, norse's tasks,
and papers' repositories. Nothing in them knows of this package."""

import random
from collections import deque
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import surrogate as snn_surrogate
from snntorch import utils as snn_utils
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based import rnn as spiking_rnn
from spikingjelly.activation_based.model import masnn, maxformer, ms_resnet, sew_resnet
from spikingjelly.activation_based.model import spike_driven_transformer as sdt
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations

# ---- SpikingJelly: its models


def sew(in_channels: int, num_classes: int) -> nn.Module:
    """A model of the zoo whose first layers are exchanged for small images, as its users do."""
    net = sew_resnet.SEWResNet(
        sew_resnet.BasicBlock,
        [1, 1, 1, 1],
        num_classes=num_classes,
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    net.conv1 = layer.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
    net.maxpool = net.layer3 = net.layer4 = nn.Identity()
    net.fc = layer.Linear(128, num_classes)
    functional.set_step_mode(net, "m")
    return net


def bottlenecks(in_channels: int, num_classes: int) -> nn.Module:
    """SEW's blocks of three convolutions, joined by IAND, whose norms begin at zero."""
    net = sew_resnet.SEWResNet(
        sew_resnet.Bottleneck,
        [1, 1, 1, 1],
        num_classes=num_classes,
        zero_init_residual=True,
        width_per_group=8,
        cnf="IAND",
        spiking_neuron=neuron.ParametricLIFNode,
        surrogate_function=surrogate.ATan(),
    )
    net.conv1 = layer.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = layer.Linear(512, num_classes)
    functional.set_step_mode(net, "m")
    return net


def ms(T: int, in_channels: int, num_classes: int) -> nn.Module:
    return ms_resnet.MSResNet(
        T=T, in_channels=in_channels, num_classes=num_classes, layers=(1, 1, 1), base_channels=8, stem_kernel_size=3,
        stem_stride=1,
    )  # fmt: skip


def attention(T: int, in_channels: int, num_classes: int) -> nn.Module:
    return masnn.AttMSResNet(
        T=T, in_channels=in_channels, num_classes=num_classes, layers=(1, 1, 1), base_channels=8, stem_kernel_size=3,
        stem_stride=1, reduction_c=4,
    )  # fmt: skip


def multi_attention(T: int, in_channels: int, num_classes: int) -> nn.Module:
    return masnn.MASNN(
        T=T, in_channels=in_channels, num_classes=num_classes, input_size=(8, 8), channels=(8, 16), pools=(1, 2),
        fc_hidden=16, reduction_t=2, reduction_c=4,
    )  # fmt: skip


def max_former(T: int, in_channels: int, num_classes: int) -> nn.Module:
    return maxformer.MaxFormer(
        T=T,
        in_channels=in_channels,
        num_classes=num_classes,
        embed_dims=16,
        depths=(1, 1, 1),
        cifar=True,
    )


def spike_driven(T: int, in_channels: int, num_classes: int) -> nn.Module:
    return sdt.SpikeDrivenTransformer(
        T=T, in_channels=in_channels, num_classes=num_classes, embed_dims=16, num_heads=2, depths=1, mlp_ratio=2.0,
        pooling_stat="0011",
    )  # fmt: skip


# ---- SpikingJelly: its examples


class FullyConnected(nn.Module):
    """The first lesson: one time step a call, and a loop around it."""

    def __init__(self, num_classes: int, tau: float = 2.0) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            layer.Flatten(),
            layer.Linear(64, num_classes, bias=False),
            neuron.LIFNode(tau=tau, surrogate_function=surrogate.ATan()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class VotingGesture(nn.Module):
    """Repeated convolutions, dropout whose mask stays for a window, and neurons that vote."""

    def __init__(self, in_channels: int, num_classes: int, T: int, channels: int = 4) -> None:
        super().__init__()
        conv = []
        for i in range(2):
            conv += [
                layer.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=False),
                layer.BatchNorm2d(channels),
                neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
                layer.MaxPool2d(2, 2),
            ]
        self.T = T
        self.conv_fc = nn.Sequential(
            *conv,
            layer.Flatten(),
            layer.Dropout(0.5),
            layer.Linear(channels * 4, 16),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
            layer.Dropout(0.5),
            layer.Linear(16, 2 * num_classes),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
            layer.VotingLayer(2),
        )
        for linear in (self.conv_fc[10], self.conv_fc[13]):
            linear.weight.data *= 8
        functional.set_step_mode(self, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        x_seq = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.conv_fc(x_seq).mean(0)


class SequentialRows(nn.Module):
    """An image's columns are its time; a learnt synapse filters spikes, and a layer sees its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            layer.Linear(8, 32),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
            layer.SynapseFilter(tau=2.0, learnable=True),
            layer.LinearRecurrentContainer(
                neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
                in_features=32,
                out_features=32,
            ),
            layer.Linear(32, num_classes),
            neuron.IFNode(surrogate_function=surrogate.ATan()),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.squeeze(1).permute(2, 0, 1)).mean(0)


class ParallelNeurons(nn.Module):
    """The network of parallel spiking neurons: an order of norms and pools, a class of neuron that is chosen."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        make = [
            lambda: neuron.PSN(T=T, surrogate_function=surrogate.ATan()),
            lambda: neuron.MaskedPSN(k=2, T=T, surrogate_function=surrogate.ATan(), step_mode="m"),
            lambda: neuron.SlidingPSN(k=2, surrogate_function=surrogate.ATan(), step_mode="m"),
        ]
        layers: list[nn.Module] = []
        for i, one in enumerate(make):
            conv = nn.Conv2d(6 if i else in_channels, 6, 3, padding=1, bias=False)
            layers += [layer.SeqToANNContainer(conv, nn.BatchNorm2d(6)), one()]
        self.T, self.features = T, nn.Sequential(*layers)
        self.head = layer.SeqToANNContainer(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)))


class SpikingLSTM(nn.Module):
    """Has no neuron of its own, but a cell of gates that fire."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.lstm = spiking_rnn.SpikingLSTM(8, 16, 1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.squeeze(1).permute(1, 0, 2))
        return self.fc(out[-1])


class ThresholdNorm(nn.Module):
    """tdBN, of the library, and its complementary neurons, whose membrane is the answer."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.conv = layer.Conv2d(in_channels, 6, 3, 2, 1, bias=False)
        self.bn = layer.ThresholdDependentBatchNorm2d(alpha=1.0, v_th=1.0, num_features=6)
        self.sn = neuron.ComplementaryLIFNode(tau=2.0, surrogate_function=surrogate.ATan())
        self.fc = layer.Linear(96, num_classes)
        self.out = neuron.LIFNode(tau=2.0, v_threshold=1e9, surrogate_function=surrogate.ATan())
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn(self.bn(self.conv(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1))))
        self.out(self.fc(x.flatten(2)))
        return self.out.v


# ---- snnTorch: its tutorials


class Tutorial5(nn.Module):
    """Gives what it recorded of spikes and of membranes."""

    def __init__(self, num_classes: int, num_steps: int) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 32), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(32, num_classes), snn.Leaky(beta=0.95)
        self.num_steps = num_steps

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Tutorial5Spikes(Tutorial5):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[1]


class Tutorial6(nn.Module):
    """A Sequential with hidden states, and the loop beside it that the tutorial has outside."""

    def __init__(self, in_channels: int, num_classes: int, num_steps: int) -> None:
        super().__init__()
        grad = snn_surrogate.fast_sigmoid(slope=25)
        self.num_steps = num_steps
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1),
            nn.MaxPool2d(2),
            snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True),
            nn.Flatten(),
            nn.Linear(64, num_classes),
            snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True, output=True),
        )

    def forward(self, data: Tensor) -> Tensor:
        mem_rec = []
        snn_utils.reset(self.net)
        for _ in range(self.num_steps):
            _, mem_out = self.net(data)
            mem_rec.append(mem_out)
        return torch.stack(mem_rec)


class Regression(nn.Module):
    """Learnt decays and thresholds, one each a neuron, and dropout in every step."""

    def __init__(self, num_classes: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc_in, self.drop = nn.Linear(64, 16), nn.Dropout(0.3)
        self.lif_in = snn.Leaky(
            beta=torch.linspace(0.3, 0.9, 16), learn_beta=True, threshold=0.7, learn_threshold=True,
            spike_grad=snn_surrogate.atan(),
        )  # fmt: skip
        self.fc_out, self.li_out = (
            nn.Linear(16, num_classes),
            snn.Leaky(beta=0.8, reset_mechanism="none"),
        )

    def forward(self, x: Tensor) -> Tensor:
        mem_1, mem_2, mem_rec = self.lif_in.init_leaky(), self.li_out.init_leaky(), []
        for _ in range(self.num_steps):
            spk_1, mem_1 = self.lif_in(self.drop(3 * self.fc_in(x.flatten(1))), mem_1)
            _, mem_2 = self.li_out(self.fc_out(spk_1), mem_2)
            mem_rec.append(mem_2)
        return torch.stack(mem_rec)


class Synapses(nn.Module):
    """Second order and recurrent neurons, which have no equal here."""

    def __init__(self, num_classes: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(64, 16), snn.Synaptic(alpha=0.9, beta=0.8)
        self.lif2 = snn.RLeaky(beta=0.8, linear_features=16)
        self.fc2, self.lif3 = nn.Linear(16, num_classes), snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> Tensor:
        (syn1, mem1), (spk2, mem2) = self.lif1.init_synaptic(), self.lif2.init_rleaky()
        mem3, record = self.lif3.init_leaky(), []
        for _ in range(self.num_steps):
            spk1, syn1, mem1 = self.lif1(2 * self.fc1(x.flatten(1)), syn1, mem1)
            spk2, mem2 = self.lif2(spk1, spk2, mem2)
            _, mem3 = self.lif3(self.fc2(spk2), mem3)
            record.append(mem3)
        return torch.stack(record)


# ---- norse: its tasks


class NorseConv(nn.Module):
    """The convolutional network of its tasks: states in variables, voltages written in place."""

    def __init__(self, in_channels: int, num_classes: int, method: str = "super") -> None:
        super().__init__()
        p = norse.LIFParameters(method=method, alpha=torch.tensor(100.0), v_th=torch.as_tensor(0.4))
        self.conv1, self.lif0 = nn.Conv2d(in_channels, 4, 3, padding=1), norse.LIFCell(p=p)
        self.conv2, self.lif1 = nn.Conv2d(4, 4, 3, padding=1), norse.LIFCell(p=p)
        self.out, self.classes = norse.LILinearCell(16, num_classes), num_classes

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = so = None
        voltages = torch.zeros(*x.shape[:2], self.classes, device=x.device, dtype=x.dtype)
        for ts in range(x.shape[0]):
            z, s0 = self.lif0(5 * self.conv1(x[ts, :]), s0)
            z = 10 * self.conv2(F.max_pool2d(z, 2, 2))
            z, s1 = self.lif1(z, s1)
            z = F.max_pool2d(z, 2, 2).view(-1, 16)
            v, so = self.out(F.relu(z), so)
            voltages[ts, :, :] = v
        return voltages


class NorseEncoded(nn.Module):
    """A current made into spikes by the library, and the largest voltage as the answer."""

    def __init__(self, num_classes: int, T: int) -> None:
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(T)
        self.fc, self.lif = nn.Linear(64, 16), norse.LIFCell()
        self.out, self.li = nn.Linear(16, num_classes), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        s = so = None
        voltages = []
        for z in self.encoder(30 * x.flatten(1).abs()):
            z, s = self.lif(60 * self.fc(z), s)
            v, so = self.li(self.out(z), so)
            voltages.append(v)
        return F.log_softmax(torch.stack(voltages).max(0).values, dim=1)


class NorsePoisson(nn.Module):
    """Draws its input's spikes anew in every call."""

    def __init__(self, num_classes: int, T: int) -> None:
        super().__init__()
        self.encoder = norse.PoissonEncoder(T, f_max=500)
        self.layers = norse.SequentialState(
            nn.Flatten(), nn.Linear(64, 16), norse.LIFBoxCell(dt=0.01), nn.Linear(16, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for spikes in self.encoder(x.abs().clamp(max=1)):
            y, state = self.layers(5 * spikes, state)
            out.append(y)
        return torch.stack(out).mean(0)


class NorseMemory(nn.Module):
    """Its network of adaptive, recurrent cells."""

    def __init__(self, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.layer = norse.LSNNRecurrentCell(64, 12)
        self.dropout, self.readout = nn.Dropout(0.2), norse.LILinearCell(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        state = out_state = None
        for _ in range(self.T):
            spikes, state = self.layer(30 * x.flatten(1), state)
            out, out_state = self.readout(self.dropout(spikes), out_state)
        return out


class NorseLifted(nn.Module):
    """Layers lifted over time, and neurons that take whole windows."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.model = norse.SequentialState(
            norse.Lift(nn.Conv2d(in_channels, 4, 3, padding=1)),
            norse.IAF(p=norse.IAFParameters(v_th=torch.as_tensor(0.5))),
            norse.Lift(nn.AvgPool2d(2)),
            nn.Flatten(2),
            nn.Linear(64, num_classes),
            norse.LI(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


class NorseZoo(nn.Module):
    """Refractory and adaptive exponential cells, which have no equal here, beside one that has."""

    def __init__(self, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.net = norse.SequentialState(
            nn.Flatten(), nn.Linear(64, 16), norse.LIFRefracCell(), nn.Linear(16, 16), norse.LIFAdExCell(),
            nn.Linear(16, 16), norse.LIFCell(), nn.Linear(16, num_classes),
        )  # fmt: skip
        for linear in (self.net[3], self.net[5]):
            linear.weight.data *= 50

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, 0.0
        for _ in range(self.T):
            y, state = self.net(100 * x, state)
            out = out + y / self.T
        return out  # type: ignore[return-value]


# ---- papers' repositories: neurons of their own


class ZIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(input)
        ctx.gamma = gamma
        return (input > 0).float()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (input,) = ctx.saved_tensors
        gamma = ctx.gamma
        return grad_output * (1 / gamma**2) * (gamma - input.abs()).clamp(min=0), None


class LIFSpike(nn.Module):
    """[B, T, ...], a loop with a threshold of 1."""

    def __init__(self, tau: float = 0.5) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, x: Tensor) -> Tensor:
        mem: Any = 0
        spike_pot = []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t, ...]
            spike = ZIF.apply(mem - 1.0, 1.0)
            mem = (1 - spike) * mem
            spike_pot.append(spike)
        return torch.stack(spike_pot, dim=1)


class TimeDistributed(nn.Module):
    def __init__(self, *args: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*args)

    def forward(self, x_seq: Tensor) -> Tensor:
        y = self.module(x_seq.flatten(0, 1).contiguous())
        return y.view(x_seq.shape[0], x_seq.shape[1], *y.shape[1:])


class Tet(nn.Module):
    """Temporal efficient training: the batch comes first, and every step answers, [B, T, K]."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.features = nn.Sequential(
            TimeDistributed(nn.Conv2d(in_channels, 6, 3, 1, 1), nn.BatchNorm2d(6)),
            LIFSpike(),
            TimeDistributed(nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6)),
            LIFSpike(),
        )
        self.classifier = TimeDistributed(nn.Flatten(), nn.Linear(96, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.unsqueeze(1).repeat(1, self.T, 1, 1, 1)))


class TetMean(Tet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


class MemUpdate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        spike = torch.zeros_like(x[0])
        output = torch.zeros_like(x)
        mem_old: Any = 0
        for i in range(x.shape[0]):
            mem = x[i] if i == 0 else mem_old * 0.25 * (1 - spike.detach()) + x[i]
            spike = ZIF.apply(mem - 0.5, 0.5)
            mem_old = mem.clone()
            output[i] = spike
        return output


class NormOverTime(nn.BatchNorm3d):
    """A batch norm that sees [T, B, C, H, W] turned round, and begins at a threshold."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        nn.init.constant_(self.weight, 0.5)

    def forward(self, input: Tensor) -> Tensor:
        y = input.transpose(0, 2).contiguous().transpose(0, 1).contiguous()
        y = super().forward(y)
        return y.contiguous().transpose(0, 1).contiguous().transpose(0, 2)


class SnnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input.flatten(0, 1))
        return out.view(input.shape[0], input.shape[1], *out.shape[1:])


class MembraneShortcut(nn.Module):
    """MS-ResNet: membranes are added, layers inherit from torch's."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            SnnConv(in_channels, 8, 3, padding=1, bias=False), NormOverTime(8)
        )
        self.block = nn.Sequential(
            MemUpdate(), SnnConv(8, 8, 3, padding=1, bias=False), NormOverTime(8),
            MemUpdate(), SnnConv(8, 8, 3, padding=1, bias=False), NormOverTime(8),
        )  # fmt: skip
        self.mem_update, self.fc = MemUpdate(), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        output = F.adaptive_avg_pool3d(self.mem_update(self.block(x) + x), (None, 1, 1))
        return self.fc(output.view(output.shape[0], output.shape[1], -1)).mean(0)


class TimeLast(nn.Module):
    """tdBN's first code: time is the last dimension, and layers are applied to each slice of it."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.conv, self.bn = nn.Conv2d(in_channels, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(96, num_classes)
        nn.init.constant_(self.bn.weight, 0.5)

    def slices(self, x: Tensor, one: nn.Module, bn: nn.Module | None = None) -> Tensor:
        out = torch.stack([one(x[..., step]) for step in range(self.T)], dim=-1)
        if bn is not None:
            out = bn(out.flatten(3)).view(out.shape)
        return out

    def fire(self, x: Tensor) -> Tensor:
        u = torch.zeros(x.shape[:-1], device=x.device)
        out = torch.zeros(x.shape, device=x.device)
        for step in range(self.T):
            u = 0.25 * u * (1 - out[..., max(step - 1, 0)]) + x[..., step]
            out = torch.cat(
                [out[..., :step], ZIF.apply(u - 0.5, 0.5)[..., None], out[..., step + 1 :]], -1
            )
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x] * self.T, dim=-1)
        x = self.fire(self.slices(x, self.conv, self.bn))
        x = self.slices(x.flatten(1, -2), self.fc)
        return torch.sum(x, dim=-1) / self.T


class Gated(nn.Module):
    """GLIF: gates between leaks, integration and resets, learnt for each channel, with a neuron for each step."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.conv, self.bn = nn.Conv2d(in_channels, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.alpha, self.beta, self.gamma = (nn.Parameter(0.2 * torch.randn(6)) for _ in range(3))
        self.tau, self.leak = (
            nn.Parameter(torch.full((6,), 0.5)),
            nn.Parameter(torch.full((6,), 0.1)),
        )
        self.conduct = nn.Parameter(torch.ones(T, 6))
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        al, be, ga = (g[:, None, None].sigmoid() for g in (self.alpha, self.beta, self.gamma))
        tau, leak = self.tau[:, None, None].sigmoid(), self.leak[:, None, None].sigmoid()
        u: Any = 0.0
        s: Any = 0.0
        out = []
        for t in range(self.T):
            current = self.bn(self.conv(x)) * (
                1 - be * (1 - self.conduct[t, :, None, None].sigmoid())
            )
            u = (1 - al * (1 - tau)) * u * (1 - ga * s) - (1 - al) * leak + current
            s = ZIF.apply(u - 0.5, 1.0)
            out.append(self.fc(s.flatten(1)))
        return torch.stack(out)


class SLTTNode(neuron.LIFNode):
    """Spatial learning through time: no gradient goes back in time."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v.detach()
        super().neuronal_charge(x)


class Sltt(nn.Module):
    """A subclass of a library's neuron whose equation is its own: it stays, and is named."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.sn = SLTTNode(tau=1.1, decay_input=False, detach_reset=True)
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.sn(self.bn(self.conv(x))).flatten(1))


class EffectiveNorm(nn.Module):
    """TEBN: a batch norm over all steps, scaled by one learnt number a step, in front of a library's neuron."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.conv, self.bn = (
            layer.SeqToANNContainer(nn.Conv2d(in_channels, 6, 3, 2, 1)),
            nn.BatchNorm3d(6),
        )
        self.p = nn.Parameter(torch.linspace(0.8, 1.2, T).view(T, 1, 1, 1, 1))
        self.sn = neuron.LIFNode(
            tau=4 / 3, step_mode="m", surrogate_function=surrogate.PiecewiseQuadratic()
        )
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1))
        y = self.bn(y.transpose(0, 1).contiguous().transpose(1, 2)).transpose(1, 2).transpose(0, 1)
        return self.fc(self.sn(y.contiguous() * self.p).flatten(2))


class Attended(nn.Module):
    """Attention whose maps a hook keeps, folds of time by hand, and a head of weights that are tied to the stem."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T, self.maps = T, deque(maxlen=2)
        self.embed, self.norm = nn.Conv1d(8 * in_channels, 8, 1, bias=False), nn.BatchNorm1d(8)
        self.lif = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")
        self.back, self.back_norm = (
            nn.Conv1d(8, 8 * in_channels, 1, bias=False),
            nn.BatchNorm1d(8 * in_channels),
        )
        self.back.weight = self.embed.weight  # [8, 8, 1], of one channel
        self.back_lif = neuron.LIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, step_mode="m")
        self.head = nn.Linear(8 * in_channels, num_classes)
        self.lif.register_forward_hook(
            lambda module, given, out: self.maps.append(out.detach().mean())
        )

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        x = x.flatten(1, 2).unsqueeze(0).repeat(self.T, 1, 1, 1)
        y = self.norm(self.embed(x.flatten(0, 1))).reshape(self.T, B, 8, -1).contiguous()
        y = self.lif(y)
        z = (
            self.back_norm(self.back(y.flatten(0, 1)))
            .reshape(self.T, B, x.shape[2], -1)
            .contiguous()
        )
        return self.head(self.back_lif(z).mean(3))


class Parametrised(nn.Module):
    """Weights that parametrizations make: of a norm one, of singular values below one, and standardised."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = layer.SeqToANNContainer(
            parametrizations.weight_norm(nn.Conv2d(in_channels, 6, 3, 2, 1)), nn.BatchNorm2d(6)
        )
        self.sn1 = neuron.LIFNode(step_mode="m")
        self.conv2 = layer.SeqToANNContainer(
            parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, 1, 1)), nn.BatchNorm2d(6)
        )
        self.sn2 = neuron.LIFNode(step_mode="m")
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.sn2(self.conv2(self.sn1(self.conv1(x)))).flatten(2))


# ---- papers' repositories: what trains is not what is tested


class Unit(nn.Module):
    """Norm and neuron, and what a subclass does between."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T = T
        self.conv, self.bn = layer.Conv2d(in_channels, 8, 3, 2, 1, bias=False), layer.BatchNorm2d(8)
        self.sn = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan())
        self.conv2, self.bn2 = layer.Conv2d(8, 8, 3, 1, 1, bias=False), layer.BatchNorm2d(8)
        self.sn2 = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan())
        self.fc = layer.Linear(128, num_classes)
        functional.set_step_mode(self, "m")
        for norm in (self.bn, self.bn2):
            nn.init.constant_(norm.bias, 0.7)

    def currents(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.sn(self.currents(self.bn(self.conv(x))))
        return self.fc(self.sn2(self.bn2(self.conv2(x))).flatten(2)).mean(0)


class NoisyCurrents(Unit):
    """Noise on currents while it trains."""

    def currents(self, y: Tensor) -> Tensor:
        return y + 0.3 * torch.randn_like(y) if self.training else y


class RoundedInTests(Unit):
    """Fixed-point currents when it is tested."""

    def currents(self, y: Tensor) -> Tensor:
        return y if self.training else (y * 16).round() / 16


class OtherThreshold(Unit):
    """A threshold of its own when it is tested, set on the neuron."""

    def forward(self, x: Tensor) -> Tensor:
        self.sn.v_threshold = 1.0 if self.training else 0.6
        return super().forward(x)


class StochasticDepth(Unit):
    """A block is left out of a window at random while it trains, and scaled when it is tested."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.sn(self.bn(self.conv(x)))
        if not self.training:
            x = x + 0.5 * self.sn2(self.bn2(self.conv2(x)))
        elif random.random() < 0.5:
            x = x + self.sn2(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(2)).mean(0)


class FakeQuantised(Unit):
    """Currents in 8 bits, whose range an observer follows in eval mode, too."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__(in_channels, num_classes, T)
        limits = {"quant_min": 0, "quant_max": 255, "dtype": torch.quint8}
        self.bits = FakeQuantize(observer=MovingAverageMinMaxObserver, **limits)

    def currents(self, y: Tensor) -> Tensor:
        return self.bits(y)


class FoundByClass(Unit):
    """Sets its neurons, which it finds by their class."""

    def forward(self, x: Tensor) -> Tensor:
        for node in self.modules():
            if isinstance(node, neuron.BaseNode):
                node.v_threshold = 0.5
        return super().forward(x)


class FrozenStem(Unit):
    """`train` keeps its first norm as it was."""

    def train(self, mode: bool = True) -> "FrozenStem":
        super().train(mode)
        self.bn.eval()
        return self


class Reparametrised(Unit):
    """A branch of its own that is folded into the convolution when it is tested."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__(in_channels, num_classes, T)
        self.point = layer.Conv2d(8, 8, 1, bias=False, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.sn(self.bn(self.conv(x)))
        if self.training:
            y = self.conv2(x) + self.point(x)
        else:
            weight = self.conv2.weight + F.pad(self.point.weight, [1, 1, 1, 1])
            y = F.conv2d(x.flatten(0, 1), weight, padding=1).unflatten(0, x.shape[:2])
        return self.fc(self.sn2(self.bn2(y)).flatten(2)).mean(0)


class IntegersInTraining(nn.Module):
    """I-LIF of a detector: whole numbers in training, and in a test as many spikes one after the other."""

    def __init__(self, in_channels: int, num_classes: int, T: int) -> None:
        super().__init__()
        self.T, self.conv = T, layer.Conv2d(in_channels, 6, 3, 2, 1, step_mode="m")
        self.bn = layer.BatchNorm2d(6, step_mode="m")
        self.sn = neuron.ILIFNode(tau=2.0, step_mode="m")
        self.fc = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn(self.bn(self.conv(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)))).flatten(2)
        if self.training:
            return self.fc(x).mean(0)
        return sum(F.linear((x > d).to(x), self.fc.weight) for d in range(4)).mean(0) + self.fc.bias


class EarlyExit(Unit):
    """Answers in fewer steps when it is tested and sure."""

    def forward(self, x: Tensor) -> Tensor:
        out: Any = 0.0
        functional.set_step_mode(self, "s")
        for t in range(self.T):
            y = self.sn(self.bn(self.conv(x)))
            out = out + self.fc(self.sn2(self.bn2(self.conv2(y))).flatten(1))
            if not self.training and bool((out.softmax(1).max(1).values > 0.99).all()):
                return out / (t + 1)
        return out / self.T


class Auxiliary(Unit):
    """Answers of every stage while it trains, by name."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"out": out, "aux": 0.5 * out} if self.training else out


class Features(Unit):
    """Gives all that it has, by name."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"logits": out, "rate": out.mean()}
