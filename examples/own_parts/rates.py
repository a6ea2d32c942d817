"""A loss of one's own: the squared distance of firing rates to 1 for the right class, and to 0 for all others."""

from torch.nn import functional as F

from spiketriton.plugins import loss


@loss("rates")
def rates(config):
    def distance(spikes, labels):  # [T, B, K], [B] or the probabilities [B, K]
        wanted = labels if labels.ndim == 2 else F.one_hot(labels, spikes.shape[2])
        return F.mse_loss(spikes.mean(0), wanted.to(spikes.dtype))

    return distance
