"""Temporal Fusion Transformer (Lim et al., arXiv 1912.09363) for several targets at once, with quantiles.

Letters: B batch, k past steps, tau future steps, T = k + tau, R targets, Q quantile levels, H hidden width, m variables of a
selection network. Inputs and outputs are standardised; units are the task's business.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.tft_config import Config as Config
from jaxtrain.models.tft_config import Variables as Variables
from jaxtrain.models.tft_config import flops_per_window as flops_per_window
from jaxtrain.nn.dropout import Dropout, bernoulli
from jaxtrain.nn.gated import GatedResidual, GateNorm
from jaxtrain.nn.interpretable import InterpretableAttention
from jaxtrain.nn.linear import Linear
from jaxtrain.nn.lstm import LSTM
from jaxtrain.nn.packed import PackedGatedResidual
from jaxtrain.nn.selection import Embedding, VariableSelection, blocks
from jaxtrain.nn.selection import Variable as Variable

Inputs = Mapping[str, jax.Array]


class TFT(nnx.Module):
    """The network of `config` on `variables`; parameters are float32, products are computed in `dtype`."""

    def __init__(
        self, config: Config, variables: Variables, context_steps: int, horizon_steps: int, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        if not variables.known:
            raise UserError("no variable is known for the future: set data.calendar, data.known_real or data.relative_step_as_known")
        self.config, self.variables = config, variables
        self.context_steps, self.horizon_steps, self.dtype = context_steps, horizon_steps, dtype
        h, static = config.hidden, bool(variables.static)
        embed = {name: Embedding(getattr(variables, name), h, rngs=rngs) for name in ("static", "observed", "known", "targets")}
        self.embeddings = nnx.Dict({name: embedding for name, embedding in embed.items() if embedding.variables})
        layer: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        select: dict[str, Any] = dict(layer, dropout=config.dropout, collapsed=config.vsn == "collapsed", remat=config.remat == "vsn")
        if static:
            self.static_selection = VariableSelection(len(variables.static), h, context=False, **select)
            self.contexts = PackedGatedResidual(4, h, dropout=config.dropout, **layer)  # for selection, enrichment, h, c
        self.past_selection = VariableSelection(len(variables.past), h, context=static, **select)
        self.future_selection = VariableSelection(len(variables.known), h, context=static, **select)
        hoisted = config.lstm == "hoisted" or (config.lstm == "auto" and jax.default_backend() != "cpu")
        self.encoder = LSTM(h, h, hoisted=hoisted, **layer)
        self.decoder = LSTM(h, h, hoisted=hoisted, **layer)
        self.lstm_gate = GateNorm(h, h, **layer)
        self.enrichment = GatedResidual(h, h, context=h if static else 0, dropout=config.dropout, **layer)
        self.attention = InterpretableAttention(h, config.heads, config.dropout, **layer)
        self.attention_gate = GateNorm(h, h, **layer)
        self.positionwise = GatedResidual(h, h, dropout=config.dropout, **layer)
        self.output_gate = GateNorm(h, h, **layer)
        self.head = Linear(h, len(variables.targets) * len(config.quantiles), kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)
        self.head.bias[...] = jnp.asarray(np.tile(_head_bias(config), len(variables.targets)))  # pyright: ignore[reportOptionalSubscript]
        self.dropout, self.unknown = Dropout(config.dropout), Dropout(config.unknown_dropout)

    def __call__(self, inputs: Inputs, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Quantiles (B, tau, R, Q) float32, standardised, not sorted.

        inputs: static_cat (B, .) int32, static_real (B, .), observed_cat (B, k, .), observed_real (B, k, .), known_cat (B, T, .),
        known_real (B, T, .), targets (B, k, R), each absent where the network has no such variable; past_mask (B, k) bool,
        absent where no example is padded: what stands where it is False is not read; last (B, R), the targets' last known
        values, where the last past step may be unknown (only `anchor: last` reads it). rngs: the source of dropout.
        """
        return self.explain(inputs, rngs)["quantiles"]

    def names(self) -> dict[str, tuple[str, ...]]:
        """Variables in the order of the weights that `explain` gives."""
        groups = {"static": self.variables.static, "past": self.variables.past, "future": self.variables.known}
        return {name: tuple(v.name for v in found) for name, found in groups.items()}

    def explain(self, inputs: Inputs, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """quantiles, and what the network read, float32, every row summing to 1: static_weights (B, m_s), past_weights
        (B, k, m_p), future_weights (B, tau, m_f), attention (B, tau, T); no static_weights without static variables."""
        steps = self.activations(inputs, rngs)
        names = ("quantiles", "static_weights", "past_weights", "future_weights", "attention")
        return {name: steps[name] for name in names if name in steps}

    def activations(self, inputs: Inputs, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Everything named in section 3 of the paper's figure, for `explain` and for comparison with other implementations."""
        self._check(inputs)
        k, mask = self.context_steps, inputs.get("past_mask")
        found: dict[str, jax.Array] = {}
        c_select = c_enrich = None
        batch = inputs["targets"].shape[0]
        h = c = jnp.zeros((batch, self.config.hidden), jnp.float32)
        if self.variables.static:
            s, found["static_weights"] = self._static(inputs, rngs)
            c_select, c_enrich, h, c = self._contexts(s, rngs)
            found |= {"static": s, "context_select": c_select, "context_enrich": c_enrich, "context_h": h, "context_c": c}
            c_enrich = c_enrich[:, None]
        past, found["past_weights"], future, found["future_weights"] = self._select(inputs, c_select, mask, rngs)
        encoded, state = self.encoder(past, (h, c), mask)
        decoded, _ = self.decoder(future, state)
        selected, recurrent = jnp.concatenate([past, future], axis=1), jnp.concatenate([encoded, decoded], axis=1)
        phi = self.lstm_gate(self.dropout(recurrent, rngs=rngs), selected)
        theta = self.enrichment(phi, c_enrich, rngs)
        visible = self._visible(mask, batch)
        found["attention"] = self.attention.weights(theta[:, k:], theta, visible)
        attended = self.attention(theta[:, k:], theta, visible, rngs)
        delta = self.attention_gate(attended, theta[:, k:])
        psi = self.positionwise(delta, rngs=rngs)
        out = self.output_gate(psi, phi[:, k:])
        found |= {"selected": selected, "recurrent": recurrent, "phi": phi, "theta": theta, "delta": delta, "psi": psi, "trunk": out}
        return {**found, "quantiles": self._read(out, inputs.get("last", inputs["targets"][:, -1]))}

    def _check(self, inputs: Inputs) -> None:
        k, steps = self.context_steps, self.context_steps + self.horizon_steps
        for name, width in self.variables.widths().items():
            if name not in inputs:
                assert not width, f"input {name}: absent, {width} columns expected"
                continue
            shape = {"static": (), "known": (steps,)}.get(name.split("_")[0], (k,))
            assert inputs[name].shape[1:] == (*shape, width), f"input {name} {inputs[name].shape}: expected (B, *{shape}, {width})"

    def _features(self, kind: str, inputs: Inputs, steps: slice | None, mask: jax.Array | None) -> jax.Array:
        """(B, [steps,] K) of one kind of variables; 0 where mask is False."""
        names = ("targets",) if kind == "targets" else (f"{kind}_real",)
        parts = [inputs.get(f"{kind}_cat"), inputs.get(names[0])]
        if steps is not None:
            parts = [None if part is None else part[:, steps] for part in parts]
        if mask is not None:
            parts = [None if part is None else jnp.where(mask[..., None], part, 0) for part in parts]
        return self.embeddings[kind].features(*parts)

    def _static(self, inputs: Inputs, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array]:
        seed = self.unknown.seed(rngs)
        if seed is not None and "static_cat" in inputs:
            categories = inputs["static_cat"]
            inputs = {**inputs, "static_cat": jnp.where(bernoulli(seed, 1 - self.unknown.rate, categories.shape), categories, 0)}
        features = self._features("static", inputs, None, None)
        s, weights = self.static_selection(features[:, None], blocks([self.embeddings["static"]]), rngs=rngs)
        return s[:, 0], weights[:, 0]

    def _contexts(self, s: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        every = self.contexts(jnp.broadcast_to(s.T, (4, *s.T.shape)), rngs)
        return tuple(context.T for context in every)

    def _select(
        self, inputs: Inputs, c: jax.Array | None, mask: jax.Array | None, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        kinds = [kind for kind in ("observed", "known", "targets") if kind in self.embeddings]
        past = jnp.concatenate([self._features(kind, inputs, slice(0, self.context_steps), mask) for kind in kinds], axis=-1)
        future = self._features("known", inputs, slice(self.context_steps, None), None)

        past_maps, future_maps = blocks([self.embeddings[kind] for kind in kinds]), blocks([self.embeddings["known"]])
        return (*self.past_selection(past, past_maps, c, rngs), *self.future_selection(future, future_maps, c, rngs))

    def _visible(self, mask: jax.Array | None, batch: int) -> jax.Array:
        """(B, tau, T): which steps each future step may look at; itself always."""
        k, tau = self.context_steps, self.horizon_steps
        ahead = np.tril(np.ones((tau, tau), bool)) if self.config.attention == "causal" else np.ones((tau, tau), bool)
        past = jnp.ones((batch, tau, k), bool) if mask is None else jnp.broadcast_to(mask[:, None], (batch, tau, k))
        return jnp.concatenate([past, jnp.broadcast_to(ahead, (batch, tau, tau))], axis=2)

    def _read(self, out: jax.Array, last: jax.Array) -> jax.Array:
        quantiles = self.head(out.astype(jnp.float32)).reshape(*out.shape[:2], len(self.variables.targets), -1)
        if self.config.head == "monotone":
            quantiles = _monotone(quantiles, self.config.quantiles.index(0.5))
        if self.config.anchor == "last":
            quantiles = quantiles + last.astype(jnp.float32)[:, None, :, None]
        return quantiles


def _monotone(raw: jax.Array, middle: int) -> jax.Array:
    """The middle level as it is, the others by cumulated softplus of their outputs up and down from it."""
    steps, centre = jax.nn.softplus(raw), raw[..., middle : middle + 1]
    above = centre + jnp.cumsum(steps[..., middle + 1 :], axis=-1)
    below = centre - jnp.cumsum(steps[..., :middle][..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([below, centre, above], axis=-1)


def _head_bias(config: Config) -> np.ndarray:
    """(Q,) such that a zero trunk forecasts the normal distribution."""
    normal = np.array([NormalDist().inv_cdf(level) for level in config.quantiles])
    if config.head == "monotone":
        middle = config.quantiles.index(0.5)
        gaps = np.abs(np.diff(normal))
        normal = np.concatenate([np.log(np.expm1(gaps[:middle])), [0.0], np.log(np.expm1(gaps[middle:]))])
    return normal.astype(np.float32)
