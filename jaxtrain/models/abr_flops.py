"""Arithmetic of the network for brainstem responses, by part."""

from jaxtrain.models.abr_config import CLASSES, END_KERNEL, HEAD_WIDTH, SAMPLES, STATICS, STEP_WIDTH, Config
from jaxtrain.nn.rotary import attention_products


def flops_per_example(config: Config) -> float:
    """Floating-point operations of training on one example, forward and backward."""
    return 3 * sum(forward_flops(config).values())


def forward_flops(config: Config) -> dict[str, float]:
    """Of one forward pass of one example, by part: products alone, a multiply-add as two; S4 as Toeplitz products.

    Kernels of S4 are built once per step, not per example, and are left out.
    """
    channels, bottom = config.channels, config.length(len(config.channels))
    parts = {
        "condition and stem": _condition(config) + config.padded * channels[0] * END_KERNEL + _ends(config),
        "encoder": sum(_encoder(config, level) for level in range(len(channels))),
        "bottleneck": _bottleneck(config, channels[-1], bottom),
        "decoder": sum(_decoder(config, level) for level in range(len(channels))),
        "output and heads": _ends(config) + _heads(config),
    }
    return {name: 2.0 * products for name, products in parts.items()}


def _condition(config: Config) -> int:
    inputs = STEP_WIDTH if config.objective == "generate" else 2
    return config.cond_width * (2 * STATICS + inputs + 2 * config.cond_width)


def _ends(config: Config) -> int:
    """The residual block beside input or output."""
    return 2 * config.padded * END_KERNEL * config.channels[0] ** 2


def _film(config: Config, channels: int) -> int:
    return 2 * config.cond_width * channels


def _state_space(channels: int, n: int) -> int:
    return n * n * channels + 2 * n * channels**2


def _encoder(config: Config, level: int) -> int:
    c, n = config.channels[level], config.length(level)
    before = config.channels[max(level - 1, 0)]
    widen = n * before * c if before != c else 0
    convolutions = n * 6 * c * c * config.res_blocks + n // 2 * 4 * c * c
    return widen + convolutions + config.s4_layers * _state_space(c, n // 2) + _film(config, c)


def _bottleneck(config: Config, c: int, n: int) -> int:
    layer = attention_products(n, n, c) + 2 * n * config.ffn_factor * c * c
    return _state_space(c, n) + config.bottleneck_layers * layer + 6 * n * c * c + _film(config, c)


def _decoder(config: Config, level: int) -> int:
    c, n = config.channels[level], config.length(level)
    below = config.channels[min(level + 1, len(config.channels) - 1)]
    layer = attention_products(n, n, c) + 2 * n * config.ffn_factor * c * c
    layer += attention_products(n, n // 2, c) if config.cross_attention else 0
    return n * 3 * (below + c) * c + config.transformer_layers * layer + _film(config, c) + n * 6 * c * c


def _heads(config: Config) -> int:
    c = config.channels[0]
    readers = [name for name in config.heads if name != "signal"] if config.objective == "predict" else []
    if not readers:
        return SAMPLES * c
    reader = SAMPLES * (c * (c // 2) + c // 2 + c) + (c + HEAD_WIDTH) * HEAD_WIDTH
    outputs = {"peak": 5 * HEAD_WIDTH + SAMPLES * (c + 3), "class": CLASSES * HEAD_WIDTH, "threshold": 2 * HEAD_WIDTH}
    return SAMPLES * c + config.channels[-1] * HEAD_WIDTH + sum(reader + outputs[name] for name in readers)
