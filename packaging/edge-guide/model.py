"""A Qwen2-shaped decoder in plain torch, just large enough to be trained on two CPU cores."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; every dimension is a multiple of 32, as Q8_0 wants it."""

    vocab: int = 4096
    width: int = 256
    ffn: int = 512
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-6


class _RmsNorm(torch.autograd.Function):
    """RMSNorm by hand: autograd's chain of small operations costs a quarter of the whole step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        normal = x * scale
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.save_for_backward(normal.to(dtype), scale, weight)
        return (normal * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        grad, normal = grad.float(), normal.float()
        inner = grad * weight
        back = (inner - normal * (inner * normal).mean(-1, keepdim=True)) * scale
        return back, (grad * normal).flatten(0, -2).sum(0), None


class Norm(nn.Module):
    """RMSNorm with a learned gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, normed over the last dimension."""
        return _RmsNorm.apply(x, self.weight, self.eps)


class Block(nn.Module):
    """Attention with grouped keys and QKV bias, then SwiGLU; both pre-normed."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.attn_norm = Norm(s.width, s.norm_eps)
        self.q = nn.Linear(s.width, s.heads * s.head_dim)
        self.k = nn.Linear(s.width, s.kv_heads * s.head_dim)
        self.v = nn.Linear(s.width, s.kv_heads * s.head_dim)
        self.o = nn.Linear(s.heads * s.head_dim, s.width, bias=False)
        self.ffn_norm = Norm(s.width, s.norm_eps)
        self.gate = nn.Linear(s.width, s.ffn, bias=False)
        self.up = nn.Linear(s.width, s.ffn, bias=False)
        self.down = nn.Linear(s.ffn, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, time, width) → the same, one layer on."""
        s, (b, t, _) = self.shape, x.shape
        h = self.attn_norm(x)
        q = _rotate(self.q(h).view(b, t, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        q = q * s.head_dim**-0.5
        k = _rotate(self.k(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = self.v(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        # Heads of one group share keys: fold them into the query length instead of copying keys.
        group = s.heads // s.kv_heads
        q = q.reshape(b, s.kv_heads, group * t, s.head_dim)
        scores = (q @ k.transpose(-1, -2)).view(b, s.kv_heads, group, t, t) + mask
        weights = scores.softmax(-1).to(v.dtype).view(b, s.kv_heads, group * t, t)
        h = (weights @ v).view(b, s.heads, t, s.head_dim)
        x = x + self.o(h.transpose(1, 2).reshape(b, t, s.heads * s.head_dim))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Guide(nn.Module):
    """Token ids (batch, time) → hidden states; `logits` ties the head to the embedding."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.embed = nn.Embedding(s.vocab, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(s.width, s.norm_eps)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * s.layers) if last else 0.03)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        angle = torch.outer(
            torch.arange(s.context, dtype=torch.float32),
            s.rope_base ** (-torch.arange(0, s.head_dim, 2, dtype=torch.float32) / s.head_dim),
        )
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (batch, time) → normed hidden states (batch, time, width)."""
        t = ids.shape[1]
        x = self.embed(ids)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        cos, sin = self.cos[:t].to(dtype), self.sin[:t].to(dtype)
        mask = torch.full((t, t), float("-inf"), dtype=dtype).triu(1)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states → scores of the next token."""
        return F.linear(hidden, self.embed.weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position, the half-split (neox) form that Qwen2 uses."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin
