"""One forward pass for learning and for generating, over the weights of transformers' own models.

Learner and generator disagree because they compute the same function in other ways: a row of a product alone or among
thousands, attention over one query or over all. Here both run this file, in which a token's numbers do not depend on
what is computed beside it: products by `kernels.linear`, attention as two products over lengths that are multiples of
`BLOCK`, its second one in sums of `CHUNK` keys. In float32 on the CPU their log-probabilities are then the same to the
bit where prompts are padded alike (`sources.generation.agreement` measures it); elsewhere they agree up to rounding.

There is no dropout in it. It knows GPT-2 and the class of Llama (Llama, Mistral, Qwen2, Qwen3), with or without
adapters in place of their projections, as long as every token sees all before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from proximo.decoder.layers import rms, rotate
from proximo.kernels.linear import linear

BLOCK = 16  # lengths are padded to multiples of it
CHUNK = 128  # keys whose values are summed at once: the library splits longer sums where it likes
FEWEST = 4  # queries below which it has other kernels
LOOPED = 400  # multiplications below which torch does them itself, and not the library
LOWEST = -1e30  # what is added to the score of a key that is not seen; finite, as a padding's query sees none

LLAMA = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}

Map = Callable[[Tensor], Tensor]
Attention = Callable[
    [int, Tensor, Tensor, Tensor], Tensor
]  # layer, q [N, H, M, D], k and v [N, G, M, D] -> [N, M, H·D]


class Block(NamedTuple):
    """One layer: x += out(attention(project(norm(x)))); x += mlp(norm_mlp(x))."""

    norm: Map
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # [N, S, W] -> q [N, S, H, D], k and v [N, S, G, D]
    out: Map
    norm_mlp: Map
    mlp: Map


class Decoder(NamedTuple):
    """A causal transformer as plain functions over a model's live weights."""

    embed: Callable[[Tensor, Tensor], Tensor]  # tokens and positions [N, S] -> [N, S, W]
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None  # x and positions -> cos and sin [N, S, D]
    blocks: list[Block]
    norm: Map
    head: Map  # [..., W] -> logits [..., V]
    scale: float  # of the scores
    saves_memory: bool  # whether layers are computed again for their gradients


def ceil(length: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-length // BLOCK) * BLOCK


def base_of(model: nn.Module) -> Any:
    """The model inside of peft's wrapper, adapters included; any other model as it is."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def kind_of(base: nn.Module) -> str:
    """Its class's name in transformers; FSDP2 puts its own before it."""
    return type(base).__name__.removeprefix("FSDP")


def knows(model: nn.Module) -> bool:
    """Whether `read` can take this model: a class it knows, of which nothing unusual was asked."""
    base = base_of(model)
    kind, config = kind_of(base), getattr(base, "config", None)
    if any(p.device.type == "meta" or hasattr(p, "placements") for p in base.parameters()):  # sharded: DTensor
        return False
    if kind == "GPT2LMHeadModel":
        odd = "add_cross_attention", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"
        return not any(getattr(config, name) for name in odd)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = kind == "MistralForCausalLM" and config.sliding_window is not None  # type: ignore[union-attr]
    return kind in LLAMA and layers == {"full_attention"} and not windows


def precise(x: Tensor) -> Tensor:
    """In float32, where it has less."""
    return x.float() if x.element_size() < 4 else x


def read(model: nn.Module, dtype: torch.dtype | None = None) -> Decoder:
    """The model's decoder; its projections' weights are converted to `dtype`, once, without gradients."""
    base = base_of(model)
    return (gpt2 if kind_of(base) == "GPT2LMHeadModel" else llama)(base, lambda module: affine(module, dtype))


def affine(module: Any, dtype: torch.dtype | None) -> Map:
    """A projection of transformers as a function; an adapter, or whatever else is in its place, as it is."""
    transposed = type(module).__name__ == "Conv1D"
    if type(module) is not nn.Linear and not transposed:
        return module
    weight, bias = module.weight, module.bias
    if dtype is not None:
        weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    weight = weight.t() if transposed else weight
    return lambda x: linear(x if dtype is None else x.to(dtype), weight, bias)


def gpt2(model: Any, affine: Callable[[nn.Module], Map]) -> Decoder:
    """Radford et al. 2019; transformers' GPT2LMHeadModel."""
    trunk, config = model.transformer, model.config
    size = config.hidden_size // config.num_attention_heads
    act = trunk.h[0].mlp.act
    if type(act).__name__ in ("NewGELUActivation", "GELUTanh"):  # the same formula, as one operation
        act = lambda x: functional.gelu(x, approximate="tanh")  # noqa: E731

    def block(layer: Any) -> Block:
        qkv, up, down = affine(layer.attn.c_attn), affine(layer.mlp.c_fc), affine(layer.mlp.c_proj)

        def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = qkv(x).unflatten(-1, (3, -1, size)).unbind(-3)
            return q, k, v

        return Block(layer.ln_1, project, affine(layer.attn.c_proj), layer.ln_2, lambda x: down(act(up(x))))

    return Decoder(
        embed=lambda token, position: trunk.wte(token) + trunk.wpe(position),
        rotary=None,
        blocks=[block(layer) for layer in trunk.h],
        norm=trunk.ln_f,
        head=affine(model.lm_head),
        scale=size**-0.5 if config.scale_attn_weights else 1.0,
        saves_memory=trunk.gradient_checkpointing,
    )


def llama(model: Any, affine: Callable[[nn.Module], Map]) -> Decoder:
    """Touvron et al. 2023, arXiv:2302.13971; transformers' LlamaForCausalLM and those that share its layers."""
    trunk = model.model
    size = trunk.layers[0].self_attn.head_dim

    def block(layer: Any) -> Block:
        attn, mlp, act = layer.self_attn, layer.mlp, layer.mlp.act_fn
        q, k, v = affine(attn.q_proj), affine(attn.k_proj), affine(attn.v_proj)
        gate, up, down = affine(mlp.gate_proj), affine(mlp.up_proj), affine(mlp.down_proj)
        q_norm, k_norm = (rms(getattr(attn, name, nn.Identity())) for name in ("q_norm", "k_norm"))  # Qwen3

        def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            queries, keys, values = (f(x).unflatten(-1, (-1, size)) for f in (q, k, v))
            return q_norm(queries), k_norm(keys), values

        norms = rms(layer.input_layernorm), rms(layer.post_attention_layernorm)
        return Block(norms[0], project, affine(attn.o_proj), norms[1], lambda x: down(act(gate(x)) * up(x)))

    return Decoder(
        embed=lambda token, position: trunk.embed_tokens(token),
        rotary=trunk.rotary_emb,
        blocks=[block(layer) for layer in trunk.layers],
        norm=rms(trunk.norm),
        head=affine(model.lm_head),
        scale=size**-0.5,
        saves_memory=trunk.gradient_checkpointing,
    )


def positions(live: Tensor) -> Tensor:
    """Position ids [N, S] of sequences padded anywhere, `live` [N, S] bool: the first live token's is 0."""
    return (live.cumsum(1) - 1).clamp(min=0)


def causal(live: Tensor) -> Tensor:
    """What each token sees, bool [N, 1, S, S]: the live tokens until itself."""
    length = live.shape[1]
    return live[:, None, None] & torch.ones(length, length, dtype=torch.bool, device=live.device).tril()


def hidden(
    decoder: Decoder, token: Tensor, position: Tensor, seen: Tensor, split: int = 0, kept: list | None = None
) -> Tensor:
    """What the last norm makes of whole sequences, [N, S, W], with gradients; `decoder.head` makes logits of it.

    `token` and `position` int64 [N, S]; `seen` bool [N or 1, 1, S, S], row: the token, column: what it attends to. The
    numbers of a token that sees nothing mean nothing. `split` is where the prompts end and completions begin (their
    first token, not their first prediction): a sum that `Cache` has in two parts is had in two parts there. Into the
    list `kept` go keys and values of each layer, [N, G, ceil(S), D].
    """
    length = token.shape[1]
    more = ceil(length) - length
    if more:
        token, position = functional.pad(token, (0, more)), functional.pad(position, (0, more))
        seen = functional.pad(seen, (0, more, 0, more))
    bias = torch.zeros(seen.shape, device=token.device).masked_fill_(~seen, LOWEST)

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if kept is not None:
            kept.append((k, v))
        return attend(q, k, v, bias, split)

    return pass_through(decoder, token, position, attention)[:, :length]


def continued(
    decoder: Decoder, prompt: Tensor, live: Tensor, owner: Tensor, token: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """What the last norm makes of prompts and of what continues them, [n, P, W] and [R, M, W], with gradients.

    Prompts [n, P], `live` bool, are read once for all rows that continue them: `token` and `position` [R, M], `owner`
    [R] the prompt of each. The numbers are those of `hidden` with `split` at the prompt's end.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    first = hidden(decoder, prompt, positions(live), causal(live), kept=kept)
    width, length = prompt.shape[1], token.shape[1]
    more = ceil(width + length) - width - length
    token, position = functional.pad(token, (0, more)), functional.pad(position, (0, more))
    own = torch.ones(length + more, length + more, dtype=torch.bool, device=token.device).tril()
    seen = torch.cat((live[owner][:, None].expand(-1, length + more, -1), own.expand(len(owner), -1, -1)), 2)[:, None]
    bias = torch.zeros(seen.shape, device=token.device).masked_fill_(~seen, LOWEST)

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (x[:, :, :width].index_select(0, owner) for x in kept[layer])
        return attend(q, torch.cat((keys, k), 2), torch.cat((values, v), 2), bias, width)

    return first, pass_through(decoder, token, position, attention)[:, :length]


def pass_through(decoder: Decoder, token: Tensor, position: Tensor, attention: Attention) -> Tensor:
    """Tokens [N, M] -> [N, M, W]."""
    x = decoder.embed(token, position)
    turn = decoder.rotary(x, position) if decoder.rotary else None

    def layer(x: Tensor, index: int) -> Tensor:
        block = decoder.blocks[index]
        q, k, v = block.project(block.norm(x))
        if turn is not None:
            q, k = (rotate(y, *turn).to(v.dtype) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        x = x + block.out(attention(index, q * decoder.scale, k, v))
        return x + block.mlp(block.norm_mlp(x))

    for index in range(len(decoder.blocks)):
        if decoder.saves_memory and torch.is_grad_enabled():
            x = checkpoint(layer, x, index, use_reentrant=False)
        else:
            x = layer(x, index)
    return decoder.norm(x)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, split: int) -> Tensor:
    """softmax(q kᵀ + bias) v of queries [N, H, M, D], already scaled, keys and values [N, G, S, D] -> [N, M, H·D].

    H / G queries share a key (Ainslie et al. 2023, arXiv:2305.13245). `bias` is [N or 1, 1, M, S].
    """
    lanes, heads, length, size = q.shape
    groups = k.shape[1]
    if q.device.type != "cpu":
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.to(q.dtype), scale=1.0, enable_gqa=heads != groups
        )
        return y.transpose(1, 2).flatten(2)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    scores = matmul(q.reshape(lanes * groups, -1, size), k.transpose(1, 2))
    scores.view(lanes, groups, -1, length, k.shape[1]).add_(bias[:, :, None])
    share = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    y: Any = None
    for part, of in zip(share.split(parts := [split, v.shape[1] - split], -1), v.split(parts, 1), strict=True):
        y = weighted(part, of, y)
    return y.view(lanes, heads, length, size).transpose(1, 2).flatten(2)


def weighted(share: Tensor, v: Tensor, y: Tensor | None = None) -> Tensor:
    """[B, M, S] x [B, S, D] -> [B, M, D], `CHUNK` keys after `CHUNK` keys, added to `y` where there is one."""
    for part, of in zip(share.split(CHUNK, -1), v.split(CHUNK, 1), strict=True):
        more = matmul(part, of)
        y = more if y is None else y + more
    assert y is not None
    return y


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, K] x [B, K, S], in float32 each row as it is among many."""
    rows = a.shape[1]
    enough = max(rows + -rows % FEWEST, -(-LOOPED // max(a.shape[2] * b.shape[2], 1)))
    more = enough - rows if a.dtype == torch.float32 else 0
    return torch.bmm(functional.pad(a, (0, 0, 0, more)), b)[:, :rows].contiguous() if more else torch.bmm(a, b)
