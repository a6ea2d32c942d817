"""The losses against their definitions, written out step by step."""

import re

import pytest
import torch
from torch.nn import functional as F

from spiketriton.config import LossConfig
from spiketriton.plugins.tasks import build_loss, task_of
from spiketriton.system.errors import UserError
from tests.covering import pairwise

T, B, K = 3, 4, 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(T, B, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (B,), generator=generator)
    return currents, labels


def smoothed_cross_entropy(logits, labels, smoothing):
    """-sum_k q_k log p_k with q = (1 - smoothing) * onehot + smoothing / K, mean over the batch."""
    target = F.one_hot(labels, K) * (1 - smoothing) + smoothing / K
    return -(target * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_of_the_mean_over_time(batch, smoothing):
    currents, labels = batch
    loss = build_loss(LossConfig(label_smoothing=smoothing))(currents, labels)
    expected = smoothed_cross_entropy(
        (currents[0] + currents[1] + currents[2]) / 3, labels, smoothing
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("lam", "smoothing"), [(0.0, 0.1), (0.05, 0.0), (1.0, 0.1)])
def test_tet_is_the_mean_of_the_steps_and_a_pull_to_one(batch, lam, smoothing):
    currents, labels = batch
    cfg = LossConfig(kind="tet", tet_lambda=lam, label_smoothing=smoothing)
    each = [smoothed_cross_entropy(o, labels, smoothing) for o in currents]
    expected = (1 - lam) * sum(each) / T + lam * ((currents - 1.0) ** 2).sum() / (T * B * K)
    torch.testing.assert_close(build_loss(cfg)(currents, labels), expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "tet"])
def test_low_precision_currents_give_a_float32_loss_and_their_own_gradient(batch, kind):
    currents = batch[0].bfloat16().requires_grad_()
    loss = build_loss(LossConfig(kind=kind))(currents, batch[1])
    (gradient,) = torch.autograd.grad(loss, currents)
    exact = currents.detach().double().requires_grad_()
    expected = build_loss(LossConfig(kind=kind))(exact, batch[1])
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradient.double(), torch.autograd.grad(expected, exact)[0], rtol=2**-8, atol=1e-9
    )


@pytest.mark.parametrize(
    ("kind", "currents", "labels"),
    [
        ("tet", (B, K), torch.zeros(B).long()),
        ("cross_entropy", (T, B, K), torch.zeros(B + 1).long()),
        ("tet", (T, B, K), torch.zeros(B, K).long()),
        ("cross_entropy", (T, B, K), torch.zeros(B)),
        ("cross_entropy", (T, B, K), torch.zeros(B, K + 1)),
    ],
)
def test_wrong_shapes_are_named(kind, currents, labels):
    words = f"{list(currents)} and labels {list(labels.shape)} of {labels.dtype}: accepted: [T, B, K] and [B], or"
    with pytest.raises(ValueError, match=re.escape(words)):
        build_loss(LossConfig(kind=kind))(torch.zeros(currents), labels)


@pytest.mark.parametrize(("kind", "smoothing"), [("cross_entropy", 0.1), ("tet", 0.0)])
def test_class_weights_against_their_definition(batch, kind, smoothing):
    """N / (K n[k]) times the cross-entropy of each image; a class without images counts for none."""
    currents, labels = batch
    counts = [10, 0, 5, 20, 1]
    weights = torch.tensor([36 / (4 * n) if n else 0.0 for n in counts], dtype=torch.float64)
    cfg = LossConfig(kind=kind, label_smoothing=smoothing, class_weights="balanced")
    target = F.one_hot(labels, K) * (1 - smoothing) + smoothing / K
    steps = currents if kind == "tet" else currents.mean(0, keepdim=True)
    expected = sum(-(target * weights * logits.log_softmax(-1)).sum(-1).mean() for logits in steps)
    expected = expected / len(steps)
    if kind == "tet":
        expected = 0.95 * expected + 0.05 * (currents - 1).square().mean()
    torch.testing.assert_close(build_loss(cfg, counts)(currents, labels), expected)


def test_class_weights_of_parts_add_up(batch):
    currents, labels = batch
    loss = build_loss(LossConfig(class_weights="balanced"), [1, 2, 3, 4, 5])
    halves = (loss(currents[:, :2], labels[:2]) + loss(currents[:, 2:], labels[2:])) / 2
    torch.testing.assert_close(loss(currents, labels), halves)


@pytest.mark.parametrize(
    ("weights", "smoothing", "kind"),
    pairwise(["none", "balanced"], [0.0, 0.1], ["cross_entropy", "tet"]),
)
def test_the_loss_of_mixed_labels_is_the_mixed_loss(batch, kind, smoothing, weights):
    """Image by image: s times the loss of the one label and 1 - s times that of the other."""
    currents, labels = batch
    cfg = LossConfig(kind=kind, label_smoothing=smoothing, class_weights=weights)
    loss = build_loss(cfg, [10, 1, 5, 20, 3])
    others, share = labels.flip(0), torch.tensor([1.0, 0.7, 0.5, 0.2])
    mixed = share[:, None] * F.one_hot(labels, K) + (1 - share[:, None]) * F.one_hot(others, K)
    expected = sum(
        s * loss(currents[:, at : at + 1], labels[at : at + 1])
        + (1 - s) * loss(currents[:, at : at + 1], others[at : at + 1])
        for at, s in enumerate(share.double())
    )
    torch.testing.assert_close(loss(currents, mixed), expected / B, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(currents, F.one_hot(labels, K).float()), loss(currents, labels))


def test_weights_of_classes_are_given_as_a_list(batch):
    currents, labels = batch
    given = (1.0, 0.5, 2.0, 0.0, 3.0)
    expected = F.cross_entropy(
        currents.mean(0), labels, torch.tensor(given).double(), reduction="none"
    ).mean()
    loss = build_loss(LossConfig(class_weights=given), [1] * 5)
    torch.testing.assert_close(loss(currents, labels), expected)
    with pytest.raises(UserError, match="has 5 weights for 3 classes"):
        build_loss(LossConfig(class_weights=given), [1] * 3)


@pytest.mark.parametrize("weights", ["none", "balanced", (0.1, 0.2, 0.1, 3.0, 0.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_guessing_has_the_least_loss_of_one_answer_to_all_images(weights, smoothing):
    """Found by descent: so a loss below it is no constant's, whatever the weights and the smoothing."""
    counts = (5, 1, 3, 2, 0)
    cfg = LossConfig(class_weights=weights, label_smoothing=smoothing)
    labels = torch.arange(5).repeat_interleave(torch.tensor(counts))
    loss, answer = build_loss(cfg, counts), torch.zeros(1, 1, 5, requires_grad=True)
    descent = torch.optim.LBFGS([answer], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        found = loss(answer.expand(1, len(labels), 5), labels)
        found.backward()
        return found

    descent.step(closure)
    assert task_of(cfg).guess_loss(counts) == pytest.approx(closure().item(), abs=2e-4)
