"""Layers that keep a state in the place of the tokens they have read: settings and tensors."""

from collections.abc import Iterator

from tests.models.weights import Setting, Tensor, bias, matrix, norm

STATE = 16
CONV = 4
RANK = 4  # of mamba's time step; elsewhere the number of heads
LORA = 8
WKV_HEAD = 64  # nothing smaller: ggml computes it in blocks of 64 and looks for no rest
DELTA_KEYS = 2  # heads
DELTA_INNER = RANK * STATE


def mamba_settings(n_embd: int) -> dict[str, Setting]:
    """Return what mamba, and mamba2 inside of others, say about their layers."""
    return {
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": 2 * n_embd,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": RANK,
    }


def mamba(at: str, n_embd: int) -> Iterator[Tensor]:
    """A decay for each value of the state."""
    inner = 2 * n_embd
    yield matrix(f"{at}.ssm_in", 2 * inner, n_embd)
    yield matrix(f"{at}.ssm_conv1d", inner, CONV)
    yield bias(f"{at}.ssm_conv1d", inner)
    yield matrix(f"{at}.ssm_x", RANK + 2 * STATE, inner)
    yield matrix(f"{at}.ssm_dt", inner, RANK)
    yield Tensor(f"{at}.ssm_dt.bias", (inner,), std=0.5, mean=-2.0)
    yield Tensor(f"{at}.ssm_a", (inner, STATE), std=0.05, mean=-1.0)
    yield Tensor(f"{at}.ssm_d", (inner,), mean=1.0)
    yield matrix(f"{at}.ssm_out", n_embd, inner, gain=2.0)


def mamba2(at: str, n_embd: int) -> Iterator[Tensor]:
    """A decay for each head."""
    inner = 2 * n_embd
    channels = inner + 2 * STATE
    yield matrix(f"{at}.ssm_in", inner + channels + RANK, n_embd)
    yield matrix(f"{at}.ssm_conv1d", channels, CONV)
    yield bias(f"{at}.ssm_conv1d", channels)
    yield Tensor(f"{at}.ssm_dt.bias", (RANK,), std=0.5, mean=-2.0)
    yield Tensor(f"{at}.ssm_a", (RANK, 1), std=0.05, mean=-1.0)
    yield Tensor(f"{at}.ssm_d", (RANK, 1), mean=1.0)
    yield Tensor(f"{at}.ssm_norm.weight", (1, inner), mean=1.0)
    yield matrix(f"{at}.ssm_out", n_embd, inner, gain=2.0)


def delta_settings() -> dict[str, Setting]:
    """Return what Qwen3.5 says about its layers of gated delta rule."""
    return {
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": DELTA_INNER,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": RANK,
        "ssm.group_count": DELTA_KEYS,
    }


def delta(at: str, n_embd: int) -> Iterator[Tensor]:
    """Qwen3.5's: what a key held before is taken out of the state when it gets a new value."""
    channels = 2 * DELTA_KEYS * STATE + DELTA_INNER
    yield matrix(f"{at}.attn_qkv", channels, n_embd)
    yield matrix(f"{at}.attn_gate", DELTA_INNER, n_embd)
    yield matrix(f"{at}.ssm_conv1d", channels, CONV)
    yield Tensor(f"{at}.ssm_dt.bias", (RANK,), std=0.5, mean=-2.0)
    yield Tensor(f"{at}.ssm_a", (RANK,), std=0.05, mean=-1.0)
    yield matrix(f"{at}.ssm_beta", RANK, n_embd)
    yield matrix(f"{at}.ssm_alpha", RANK, n_embd)
    yield norm(f"{at}.ssm_norm", STATE)
    yield matrix(f"{at}.ssm_out", n_embd, DELTA_INNER, gain=2.0)


def rwkv_settings() -> dict[str, Setting]:
    """Return what RWKV-7 says about itself."""
    return {
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.decay_lora_rank": LORA,
        "attention.iclr_lora_rank": LORA,
        "attention.value_residual_mix_lora_rank": LORA,
        "attention.gate_lora_rank": LORA,
        "wkv.head_size": WKV_HEAD,
        "token_shift_count": 2,
    }


def rwkv(at: str, n_embd: int, n_ff: int) -> Iterator[Tensor]:
    """RWKV-7's two halves, each of which also looks at the token before."""
    for name in ("attn_norm", "attn_norm_2"):
        yield norm(f"{at}.{name}", n_embd)
        yield bias(f"{at}.{name}", n_embd)
    for name in ("w", "a", "v"):
        yield Tensor(f"{at}.time_mix_{name}0.weight", (n_embd,), std=0.5)
    for name in ("w", "a", "v", "g"):
        yield matrix(f"{at}.time_mix_{name}1", LORA, n_embd)
        yield matrix(f"{at}.time_mix_{name}2", n_embd, LORA)
    yield Tensor(f"{at}.time_mix_lerp_fused.weight", (6, 1, 1, n_embd), std=0.1, mean=0.5)
    for name in ("k_k", "k_a", "r_k"):
        yield Tensor(f"{at}.time_mix_{name}.weight", (n_embd,), std=0.1, mean=0.5)
    for name in ("key", "value", "receptance"):
        yield matrix(f"{at}.time_mix_{name}", n_embd, n_embd)
    yield matrix(f"{at}.time_mix_output", n_embd, n_embd, gain=2.0)
    yield norm(f"{at}.time_mix_ln", n_embd)
    yield bias(f"{at}.time_mix_ln", n_embd)
    yield Tensor(f"{at}.channel_mix_lerp_k.weight", (1, 1, n_embd), std=0.1, mean=0.5)
    yield matrix(f"{at}.channel_mix_key", n_ff, n_embd)
    yield matrix(f"{at}.channel_mix_value", n_embd, n_ff)
