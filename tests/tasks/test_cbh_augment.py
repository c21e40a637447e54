"""Views of a window: one draw for all frames, mirrors that take the sun along, boxes, levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cbh_case import H, T, W, batch, sections, task
from flax import nnx

from jaxtrain.data.clouds_synthetic import sunlit
from jaxtrain.errors import UserError
from jaxtrain.tasks import cbh_augment as augment
from jaxtrain.tasks.cbh import make_task

WINDOWS = 4000


def drawn(kind: str, strength: float, *, seed: int = 0, frames: int = T, mirrors: bool = True) -> augment.View:
    def draw():
        view = augment.draw(augment.AugmentConfig(kind, strength), nnx.Rngs(seed), (WINDOWS, frames, H, W), mirrors=mirrors)
        return vars(view)

    return augment.View(**jax.jit(draw)())


@pytest.fixture(scope="module")
def own() -> augment.View:
    return drawn("own", 1.0)


def augment_seen(view, frames, sun, pixel_std, centre):
    """`augment.seen` as one compiled call."""
    call = jax.jit(lambda parts, *rest: augment.seen(augment.View(**parts), *rest))
    return call(vars(view), frames, sun, jnp.float32(pixel_std), jnp.asarray(centre, jnp.float32))


def by_hand(across: bool, along: bool, kept=None) -> augment.View:
    one = jnp.ones(1)
    return augment.View(one, 0 * one, jnp.array([across]), jnp.array([along]), kept)


def test_own_amplitudes_are_those_of_the_unknown_camera(own):
    assert float(own.gain.mean()) == pytest.approx(1, abs=0.01) and float(own.gain.std()) == pytest.approx(0.1, rel=0.05)
    assert float(own.offset.std()) == pytest.approx(0.5, rel=0.05) and own.kept is None
    assert float(own.across.mean()) == pytest.approx(0.5, abs=0.03) and float(own.along.mean()) == pytest.approx(0.5, abs=0.03)
    assert float((own.across & own.along).mean()) == pytest.approx(0.25, abs=0.03)


def test_strength_multiplies_and_mirrors_can_be_off(own):
    half = drawn("own", 0.5, mirrors=False)
    np.testing.assert_allclose(half.gain - 1, (own.gain - 1) / 2, atol=1e-6)
    np.testing.assert_allclose(half.offset, own.offset / 2, atol=1e-6)
    assert not half.across.any() and not half.along.any()


def test_of_an_even_number_of_frames_the_labelled_one_has_no_mirror_image(own):
    even = drawn("own", 1.0, seed=1, frames=4)
    assert not even.along.any() and float(even.across.mean()) == pytest.approx(0.5, abs=0.03)
    assert not np.allclose(even.gain, own.gain)  # another key, another view


def test_seed_amplitudes_and_boxes():
    view = drawn("seed", 0.8)
    for values in (view.gain - 1, view.offset):
        assert 0.155 < float(values.max()) <= 0.16 and -0.16 <= float(values.min()) < -0.155
    assert not view.along.any() and float(view.across.mean()) == pytest.approx(0.4, abs=0.03) and view.kept is not None
    erased = 1 - np.asarray(view.kept)
    hit = erased.any((1, 2))
    assert hit.mean() == pytest.approx(0.4, abs=0.03)
    share = erased[hit].mean((1, 2))
    assert 0.01 < share.min() and share.max() < 0.12 and share.mean() == pytest.approx(0.06, abs=0.01)
    tall, wide = erased[hit].any(2).sum(1), erased[hit].any(1).sum(1)
    np.testing.assert_array_equal(tall * wide, erased[hit].sum((1, 2)))  # a box, and nothing else
    assert (tall / wide).min() < 0.6 and (tall / wide).max() > 1.8
    assert erased.any(0).all()  # they reach every corner


def test_a_box_is_the_same_in_all_frames_and_its_value_is_the_mean():
    kept = np.random.default_rng(0).integers(0, 2, (4, H, W)).astype(np.float32)
    channels = augment.erased(by_hand(False, False, jnp.asarray(kept)), jnp.ones((4, T, H, W, 2)))
    np.testing.assert_array_equal(channels, np.broadcast_to(kept[:, None, :, :, None], channels.shape))


def test_mirrors_reverse_frames_and_take_the_sun_along():
    one = batch(3)
    mirrors = jnp.array([[True, False, False], [False, True, False]])
    view = augment.View(jnp.ones(3), jnp.zeros(3), mirrors[0], mirrors[1], None)
    frames, turned = augment_seen(view, one["frames"], one["sun"], 1.0, 0.0)
    np.testing.assert_array_equal(frames[0], one["frames"][0, ..., ::-1])
    np.testing.assert_array_equal(frames[1], one["frames"][1, ::-1, ::-1])
    np.testing.assert_array_equal(frames[2], one["frames"][2])
    azimuth = one["sun"][:, 1]
    np.testing.assert_array_equal(turned[:, 0], one["sun"][:, 0])
    np.testing.assert_allclose(turned[:, 1], [360 - azimuth[0], 180 - azimuth[1], azimuth[2]], rtol=1e-5)


@pytest.mark.parametrize(("across", "along"), [(True, False), (False, True), (True, True)])
def test_the_mirrored_cloud_under_the_mirrored_sun_is_lit_alike(across, along):
    thick = np.random.default_rng(0).random((40, 30)).cumsum(0).cumsum(1) / 200
    turn = (slice(None, None, -1 if along else 1), slice(None, None, -1 if across else 1))
    sun = jnp.array([[40.0, 73.0]])
    _, turned = augment_seen(by_hand(across, along), jnp.zeros((1, 1, 2, 2)), sun, 1.0, 0.0)
    zenith, azimuth = (np.full((1, 1), float(x)) for x in turned[0])
    lit = sunlit(thick, np.full((1, 1), 40.0), np.full((1, 1), 73.0))
    assert lit.std() > 0.05
    np.testing.assert_allclose(sunlit(thick[turn], zenith, azimuth), lit[turn], atol=1e-5)
    assert not np.allclose(sunlit(thick[turn], np.full((1, 1), 40.0), np.full((1, 1), 73.0)), lit[turn], atol=1e-2)


def test_gain_and_offset_turn_about_the_centre_and_stay_float():
    one = batch(2)
    view = augment.View(jnp.array([1.1, 0.5]), jnp.array([0.5, -1.0]), jnp.zeros(2, bool), jnp.zeros(2, bool), None)
    found, _ = augment_seen(view, one["frames"], one["sun"], 4.0, [285.0, 280.0])
    np.testing.assert_allclose(found[0], 285 + 1.1 * (one["frames"][0] - 285) + 2, rtol=1e-5)
    np.testing.assert_allclose(found[1], 280 + 0.5 * (one["frames"][1] - 280) - 4, rtol=1e-5)
    assert np.corrcoef(np.asarray(found[0]).ravel(), one["frames"][0].ravel())[0, 1] > 0.9999


def mirrored(**overrides: str) -> bool:
    """Whether the task ever mirrors a window."""
    made = task(model__intensity="both", augment__kind="seed", **overrides)
    made = made.with_statistics({"heading_known": np.array(False)})
    seen = {}

    def catch(config, rngs, shape, *, mirrors):
        seen["mirrors"] = mirrors
        return by_hand(False, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "draw", catch)
        from cbh_case import Told

        jax.eval_shape(lambda b: made.loss(Told(np.zeros(1)), b, nnx.Rngs(0)), batch(1))
    return seen["mirrors"]


def test_without_a_heading_only_models_that_ignore_the_azimuth_are_mirrored():
    assert not mirrored() and not mirrored(data__angles="saa_only")
    assert mirrored(data__angles="sza_only") and mirrored(model__film="none") and mirrored(model__variant="cnn")


def test_impossible_views_are_refused_by_key():
    with pytest.raises(UserError, match="did you mean 'own'"):
        make_task(sections(augment__kind="owm"))
    with pytest.raises(UserError, match="strength"):
        make_task(sections(augment__strength="-1.0"))
