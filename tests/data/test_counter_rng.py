import numpy as np

from spiketriton.data.counter_rng import mix, uniforms


def test_mix_is_fixed_for_ever():
    """Resumed runs of another machine or release must see the same augmentation."""
    assert mix(0, 1, 2, np.arange(3)).tolist() == [
        9578401732680742800,
        13832968395965468486,
        4646114016372988125,
    ]


def test_uniforms_are_uniform_and_uncorrelated():
    draws = uniforms(mix(0, np.arange(20_000)), 4)
    assert draws.shape == (20_000, 4)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    # a uniform mean of 20,000 draws has a standard error of 0.002
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(4), atol=0.04)
    np.testing.assert_allclose(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1], 0, atol=0.04)
