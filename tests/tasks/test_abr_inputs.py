"""What the network of evoked responses is given: scaling, missing values, noise, augmentation."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from abr_case import COUNT, batch, splits, task

from jaxtrain.data.evoked_noise import covariance
from jaxtrain.tasks import abr_inputs

STATISTICS = {
    "statics_mean": np.array([0.5, 40, 33, 0.7], np.float32), "statics_std": np.array([0.6, 30, 4, 0.5], np.float32),
    "sigma_ref": np.float32(0.15), "units": np.array("uV"),
}  # fmt: skip


def test_records_are_standardised_and_their_scale_is_told():
    one = batch()
    one["signal"] = one["signal"] + np.float32(0.3)
    one["signal"][0] = 0.2 + 1e-4 * np.sin(np.arange(200))  # nearly flat
    inputs, center, scale = jax.jit(lambda b: abr_inputs.network_inputs(STATISTICS, b))(one)
    sd = np.maximum(one["signal"].std(1), 0.01)
    np.testing.assert_allclose(inputs["x"], (one["signal"] - one["signal"].mean(1, keepdims=True)) / sd[:, None], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inputs["scale"], np.stack([one["signal"].mean(1) / 0.15, np.log(sd / 0.15)], 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(center, one["signal"].mean(1), rtol=1e-5)
    assert float(scale[0]) == np.float32(0.01) and "null" not in inputs


def test_zscored_records_keep_their_numbers():
    one = batch()
    inputs, center, scale = abr_inputs.network_inputs({**STATISTICS, "units": np.array("zscore")}, one)
    np.testing.assert_array_equal(inputs["x"], one["signal"])
    assert np.all(center == 0) and np.all(scale == 1)


def test_statics_are_normalised_and_missing_ones_are_zero():
    raw = np.array([[3, 60, 33.1, 2.0], [0, 20, 11.1, 900]], np.float32)
    ok = np.array([[True, True, True, True], [True, False, True, True]])
    found = np.asarray(abr_inputs.normalised_statics(STATISTICS, raw, ok))
    mean, std = STATISTICS["statics_mean"], STATISTICS["statics_std"]
    np.testing.assert_allclose(found[0], (np.array([np.log(4), 60, 33.1, np.log(3)]) - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, [0, 2, 3]], ((np.array([0, 20, 11.1, np.log(51)]) - mean) / std)[[0, 2, 3]], rtol=1e-5)
    assert found[1, 1] == 0


@pytest.mark.slow
def test_training_draws_other_noise_for_every_key():
    data = replace(task().config.data, target="corrupt")
    first, second = (abr_inputs.corrupted(data, batch(), jax.random.key(number))["signal"] for number in range(2))
    assert not np.allclose(first, second)


def test_coloured_noise_has_the_covariance_of_recordings():
    noise = np.asarray(jax.jit(abr_inputs.coloured)(np.random.default_rng(0).normal(size=(20_000, 129, 2)).astype(np.float32)))
    assert noise.shape == (20_000, 200)
    np.testing.assert_allclose(noise.T @ noise / len(noise), covariance(), atol=0.05)


def test_corrupt_adds_the_same_noise_to_a_record_in_every_evaluation():
    data = task().config.data
    one = batch()
    assert abr_inputs.corrupted(data, one, None) is one
    data = replace(data, target="corrupt")
    whole = jax.jit(lambda b: abr_inputs.corrupted(data, b, None))(one)
    noise = np.asarray(whole["signal"]) - one["signal"]
    size = noise.std(1) / one["signal"].std(1)
    assert 0.15 < size.min() and size.max() < 1.6 and size.std() > 0.05
    np.testing.assert_array_equal(whole["target"], one["target"])
    order = np.roll(np.arange(COUNT), 3)
    rolled = jax.jit(lambda b: abr_inputs.corrupted(data, b, None))({name: values[order] for name, values in one.items()})
    np.testing.assert_array_equal(rolled["signal"], np.asarray(whole["signal"])[order])


def test_a_shift_moves_waveforms_and_latency_and_repeats_the_edge():
    one = batch()
    samples = np.array([3, -2, 0] * 4)
    found = abr_inputs.shifted(one, samples)
    for name in ("signal", "target"):
        moved = np.asarray(found[name])
        np.testing.assert_array_equal(moved[0, 3:], one[name][0, :-3])
        assert np.all(moved[0, :3] == one[name][0, 0]) and np.all(moved[1, -2:] == one[name][1, -1])
        np.testing.assert_array_equal(moved[1, :-2], one[name][1, 2:])
        np.testing.assert_array_equal(moved[2], one[name][2])
    np.testing.assert_allclose(found["latency_ms"] - one["latency_ms"], 0.05 * samples, atol=1e-6)


def test_a_gain_moves_amplitude_with_the_waveforms():
    one = batch()
    gain = np.linspace(0.9, 1.1, COUNT).astype(np.float32)
    found = abr_inputs.amplified(one, gain)
    np.testing.assert_allclose(found["amplitude_uv"], gain * one["amplitude_uv"], rtol=1e-6)
    np.testing.assert_allclose(found["target"], gain[:, None] * one["target"], rtol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_augmentation_draws_what_it_says(augment):
    data = replace(task().config.data, augment=augment, hide_statics=0.25)
    one = {name: np.repeat(values, 200, axis=0) for name, values in batch().items() if not name.endswith("_member")}
    found = jax.jit(lambda b, key: abr_inputs.augmented(data, b, key))(one, jax.random.key(0))
    ok = one["statics_ok"]
    assert 0.22 < 1 - np.asarray(found["statics_ok"])[ok].mean() < 0.28 and not np.asarray(found["statics_ok"])[~ok].any()
    if not augment:
        np.testing.assert_array_equal(found["signal"], one["signal"])
        assert "statics_noise" not in found
        return
    moved = np.round((np.asarray(found["latency_ms"]) - one["latency_ms"]) / 0.05, 2)
    assert set(np.unique(moved)) == {-3, -2, -1, 0, 1, 2, 3} and 0.14 < (moved != 0).mean() < 0.20  # 0.2 x 6/7
    real = np.abs(one["amplitude_uv"]) > 0.02
    gain = (np.asarray(found["amplitude_uv"]) / np.where(real, one["amplitude_uv"], 1))[real]
    assert 0.17 < (np.abs(gain - 1) > 1e-4).mean() < 0.23 and 0.949 < gain.min() and gain.max() < 1.051
    still = (moved == 0) & (np.abs(np.asarray(found["target"]) / one["target"] - 1).max(1) < 1e-5)
    noise = (np.asarray(found["signal"]) - one["signal"])[still].std(1) / one["signal"][still].std(1)
    assert 0.25 < (noise > 1e-3).mean() < 0.35 and noise[noise > 1e-3].mean() == pytest.approx(0.02, rel=0.05)
    wobble = np.asarray(found["statics_noise"])
    assert 0.27 < (wobble != 0).all(1).mean() < 0.33 and wobble[wobble != 0].std() == pytest.approx(0.05, rel=0.05)


def test_statics_noise_reaches_the_known_values_alone():
    one = batch()
    one["statics_ok"] = one["statics_ok"].copy()
    one["statics_ok"][:, 0] = False
    noise = np.full((COUNT, 4), 0.5, np.float32)
    plain, noisy = (abr_inputs.conditions(STATISTICS, {**one, **extra})["statics"] for extra in ({}, {"statics_noise": noise}))
    np.testing.assert_allclose(np.asarray(noisy - plain), np.where(one["statics_ok"], 0.5, 0), atol=1e-5)


def test_served_without_statics_asks_for_the_learned_condition():
    dataset = abr_inputs.without_statics(splits().test)
    inputs, _, _ = jax.jit(lambda b: abr_inputs.network_inputs(STATISTICS, b))(dataset.gather(dataset.arrays, dataset.index[:5]))
    assert np.asarray(inputs["null"]).tolist() == [True] * 5
