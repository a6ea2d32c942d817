"""What the tests of displays, tables and pictures share."""

from typing import Any

import numpy as np

from spiketriton.evaluate.results import Evaluation, Layer
from spiketriton.gradients.measurement import COLUMNS, TIME, Measurement
from spiketriton.training.plan import Outcome, Plan, Progress

PLAN = Plan(
    steps=100,
    epoch_steps=20,
    batch_size=32,
    log_every=10,
    test_every=40,
    save_every=20,
    measure_every=10,
    test_images=300,
)


def outcome(step: int = 100, **changes) -> Outcome:
    values = {
        "plan": PLAN,
        "progress": Progress(
            step=step,
            seconds=200.0,
            test_score=0.9,
            test_loss=0.3,
            best_score=0.95,
            best_step=40,
            validation_score=0.94,
            best_test_score=0.91,
            tested_at=step,
        ),
        "images_per_s": 321.0,
        "peak_memory_mib": 512.0,
        "firing_rate": 0.123,
        "saved_at": step,
        "exit_code": 0,
    }
    return Outcome(**(values | changes))


def evaluation(**changes: Any) -> Evaluation:
    """A net of two layers, 100 and 40 neurons, 4 steps run and T = 3, with round numbers."""
    values: dict[str, Any] = {
        "run": "runs/net",
        "recipe": "small",
        "kind": "spiking",
        "neuron": "lif",
        "method": None,
        "checkpoint": "last",
        "training_step": 7,
        "data": "digits",
        "synthetic": False,
        "images": 1000,
        "classes": ["cat", "dog"],
        "time_steps": 3,
        "values": [0.5, 0.625, 0.75, 0.8125],
        "interval": [(0.4, 0.6), (0.525, 0.725), (0.65, 0.85), (0.7125, 0.9125)],
        "confusion": [[30, 10], [5, 5]],
        "layers": [
            Layer(
                name="first",
                neurons=100,
                rate=[0.125, 0.25, 0.375, 0.9],
                dead=5,
                saturated=10,
                synaptic_operations=2e6,
            ),
            Layer(
                name="second",
                neurons=40,
                rate=[0.5, 0.5, 0.5, 0.5],
                dead=2,
                saturated=0,
                synaptic_operations=1e6,
            ),
        ],
        "read": "mean over time",
        "mean_rate": 0.321,
        "synaptic_operations": [1e6, 2e6, 3e6, 4e6],
        "neurons": 1000,
        "macs_once": 500_000,
        "macs_per_step": 20_000,
        "ann_macs": 10_000_000,
        "layer_macs": {"first": 500_000, "second": 9_500_000},
        "leaky": True,
        "energy_uj": [1.5, 2.5, 4.6, 5.5],
        "energy_with_data_uj": [10.0, 20.0, 36.5, 40.0],
        "images_per_s": 1234.4,
        "device": "a cpu",
    }
    return Evaluation(**(values | changes))


def ann(**changes: Any) -> Evaluation:
    """Its ANN twin."""
    values: dict[str, Any] = {
        "run": "runs/twin",
        "kind": "ann",
        "neuron": "relu",
        "time_steps": 1,
        "values": [0.76],
        "interval": [(0.66, 0.86)],
        "synaptic_operations": [0.0],
        "macs_once": 10_000_000,
        "macs_per_step": 0,
        "leaky": False,
        "energy_uj": [46.0],
        "energy_with_data_uj": [146.0],
    }
    return evaluation(**(values | changes))


def measurement(grad_input_rms: np.ndarray, **fields: np.ndarray) -> Measurement:
    """Layers `layer 0`, `layer 1`, ... with these gradients [layers, T]; all else is 0."""
    others = (n for n in COLUMNS if n not in ("grad_input_rms", *TIME))
    zeros = {name: np.zeros(grad_input_rms.shape) for name in others}
    layers = tuple(f"layer {i}" for i in range(len(grad_input_rms)))
    return Measurement(names=layers, grad_input_rms=grad_input_rms, **(zeros | fields))
