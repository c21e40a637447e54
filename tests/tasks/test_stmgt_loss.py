"""The traffic objective: its terms against plain NumPy, what it trains and what it ignores, augmentation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stmgt_case import batch, observed, splits, task, trained

from jaxtrain.errors import UserError
from jaxtrain.nn import mixture as mixtures
from jaxtrain.nn.mixture import Mixture


def test_loss_is_finite_falls_and_reaches_every_parameter():
    losses = trained().losses
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    for path, leaf in nnx.to_flat_state(trained().gradient):
        assert np.isfinite(np.asarray(leaf[...])).all(), path


def test_loss_equals_its_terms_in_normalised_units():
    weights = {"loss__crps": ".5", "loss__nll": "2", "loss__mse": ".4", "loss__spread": ".01", "loss__entropy": ".001"}
    made, one = task(**weights), batch()
    model = nnx.view(made.build(nnx.Rngs(0)), deterministic=True)
    value, logs = made.loss(model, one, nnx.Rngs(1))
    mixture: Mixture = model(one)
    mean, std = splits().statistics["speed_mean"], splits().statistics["speed_std"]
    y, mask = (one["target"] - mean) / std, observed(one)
    pi, mu, sigma = (np.asarray(x, np.float64) for x in (np.exp(mixture.log_weights), mixture.means, mixture.stds))
    density = (pi * np.exp(-(((y[..., None] - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))).sum(-1)
    terms = {
        "crps": np.asarray(mixtures.crps(mixture, jnp.asarray(y))),
        "nll": -np.log(density),
        "mse": ((pi * mu).sum(-1) - y) ** 2,
        "spread": mu.std(-1, ddof=1),
        "entropy": (pi * np.log(pi)).sum(-1),
    }
    for name, term in terms.items():
        assert float(logs[name]) == pytest.approx(term[mask].mean(), rel=1e-4)
    average = {name: term[mask].mean() for name, term in terms.items()}
    expected = 0.5 * average["crps"] + 2 * average["nll"] + 0.4 * average["mse"] - 0.01 * average["spread"] + 0.001 * average["entropy"]
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(logs["weight"]) == mask.sum()


def test_relation_biases_are_logged_where_there_are_any():
    made, one = task(), batch()
    model = nnx.view(made.build(nnx.Rngs(0)), deterministic=True)
    beta = model.blocks[0].spatial.pair_bias.relation
    beta.set_value(jnp.array([1.0, 3.0, 0.5, 0.0, 0.0])[:, None] + jnp.array([0.0, 1.0]))
    logs = made.loss(model, one, nnx.Rngs(0))[1]
    assert (float(logs["bias_upstream"]), float(logs["bias_downstream"])) == (2.0, -0.5)
    plain = task(model__relation_bias="no")
    assert "bias_upstream" not in plain.loss(nnx.view(plain.build(nnx.Rngs(0)), deterministic=True), one, nnx.Rngs(0))[1]


def test_padded_examples_do_not_count_in_the_loss():
    made, one = task(), batch()
    model = nnx.view(made.build(nnx.Rngs(0)), deterministic=True)
    short = {name: value[:3] for name, value in one.items()}
    padded = {**one, "mask": np.array([1, 1, 1, 0, 0], np.float32)}
    (a, logs_a), (b, logs_b) = (made.loss(model, x, nnx.Rngs(1)) for x in (short, padded))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    assert float(logs_a["weight"]) == float(logs_b["weight"])


def test_raw_output_is_not_trained():
    made = task(model__output_space="raw", model__anchor="none")
    model = made.build(nnx.Rngs(0))
    with pytest.raises(UserError, match="train with 'normalized'"):
        made.loss(model, batch(), nnx.Rngs(0))
    with pytest.raises(UserError, match="second time"):
        made.predict(nnx.view(model, deterministic=True), batch(), denormalize=True)


def test_augmentation_hides_whole_nodes_and_adds_noise_to_observed_steps_only():
    made, one, statistics = task(augment__mask_nodes=".5", augment__noise_std=".1"), batch(), splits().statistics
    changed = {k: np.asarray(v) for k, v in made._augment({k: jnp.asarray(v) for k, v in one.items()}, nnx.Rngs(3)).items()}
    hidden = ~changed["observed"].any(1) & one["observed"].any(1)
    assert 0.3 < hidden.mean() < 0.7
    lost = ~(changed["observed"] | one["observed"]).any(1)  # was unobserved anyway: hidden or not makes no difference
    kept = np.broadcast_to(~hidden[:, None] & ~lost[:, None], changed["observed"].shape)
    np.testing.assert_array_equal(changed["observed"][kept], one["observed"][kept])
    steps = one["speed"].shape[1]
    usual = statistics["profile"][(one["dow"][:, :steps] >= 5).astype(int), one["slot"][:, :steps]]
    away = np.broadcast_to(hidden[:, None], kept.shape)
    np.testing.assert_array_equal(changed["speed"][away], usual[away])
    noise = (changed["speed"] - one["speed"])[changed["observed"]] / statistics["speed_std"]
    assert 0.08 < noise.std() < 0.12
    untouched = kept & ~one["observed"]
    np.testing.assert_array_equal(changed["speed"][untouched], one["speed"][untouched])
