"""Generators draw what they say, say how likely it was, and agree with the learner."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proximo.decoder import transformer as shared
from proximo.decoder.cache import Cache
from proximo.errors import ConfigError
from proximo.sources import generation
from proximo.sources.generation import Completions, agreement, continuous, decode, generate
from proximo.sources.sampling import Sampling, distribution, draw

transformers = pytest.importorskip("transformers")

EOS, PAD, WORDS = 1, 0, 23
ALL = pytest.mark.parametrize("generator", [decode, generate, continuous], ids=lambda f: f.__name__)
BOTH = pytest.mark.parametrize("generator", [decode, generate], ids=lambda f: f.__name__)


def tiny(kind: str = "gpt2", words: int = WORDS, dropout: float = 0.0, sharp: float = 3.0, **more: Any) -> nn.Module:
    """A model of two layers whose next tokens are far from equally likely."""
    torch.manual_seed(0)
    common = dict(vocab_size=words, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, **more)
    if kind == "gpt2":
        drop = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
        sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=512)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drop, **common))
    else:
        sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        sizes |= dict(num_key_value_heads=2, max_position_embeddings=512)
        names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
        if kind == "qwen3":
            sizes["head_dim"] = 8
        if kind == "mistral":
            sizes["sliding_window"] = more.pop("sliding_window", None)
            common.pop("sliding_window", None)
        config = getattr(transformers, f"{names[kind]}Config")(**sizes, **common)
        model = getattr(transformers, f"{names[kind]}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharp)
    return model


def prompts(count: int = 6, width: int = 9, words: int = WORDS) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths, padded on the left."""
    torch.manual_seed(1)
    live = torch.arange(width)[None] >= torch.arange(count)[:, None] % (width - 1)
    return torch.randint(2, words, (count, width)).where(live, PAD), live


def drawn(
    generator: Any, model: nn.Module, sampling: Sampling, repeat: int = 1, seed: int = 7, **how: Any
) -> Completions:
    texts = how.get("prompts", prompts())
    torch.manual_seed(seed)
    return generator(model, *texts, sampling, repeat)


def same(a: Completions, b: Completions) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def reference_logp(
    model: Any, token: Tensor, live: Tensor, made: Completions, temperature: float, repeat: int
) -> Tensor:
    """Float64, one sequence at a time, without padding: transformers' own forward pass."""
    model = model.double().eval()
    logp = torch.zeros(made.token.shape, dtype=torch.float64)
    for lane in range(made.token.shape[1]):
        prompt = token[lane // repeat][live[lane // repeat]]
        answer = made.token[:, lane][made.mask[:, lane]]
        with torch.no_grad():
            logits = model(torch.cat((prompt, answer))[None]).logits[0, len(prompt) - 1 : -1] / temperature
        logp[: len(answer), lane] = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    model.float()
    return logp


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_our_decoder_agrees_with_the_learner_to_the_bit(kind: str) -> None:
    model = tiny(kind)
    assert shared.knows(model)
    for repeat, temperature, steps in ((1, 1.0, 5), (4, 0.7, 40)):
        sampling = Sampling(steps, temperature, eos=(EOS,), pad=PAD)
        assert agreement(decode, model, *prompts(), sampling, repeat) == 0.0


def test_agreement_to_the_bit_does_not_end_at_long_prompts() -> None:
    sampling = Sampling(40, eos=(EOS,), pad=PAD)
    assert agreement(decode, tiny("llama"), *prompts(3, 300), sampling, 2) == 0.0
    assert agreement(decode, tiny(), *prompts(1, 120), sampling, 1) == 0.0


@ALL
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_log_probabilities_are_those_of_the_model(generator: Any, kind: str) -> None:
    model = tiny(kind)
    sampling = Sampling(12, 0.7, eos=(EOS,), pad=PAD)
    made = drawn(generator, model, sampling, 3)
    expected = reference_logp(model, *prompts(), made, 0.7, 3)
    assert float(((made.logp - expected) * made.mask).abs().max()) < 1e-5
    assert agreement(generator, model, *prompts(), sampling, 3) < 1e-5


def test_the_shared_pass_has_the_gradients_of_transformers() -> None:
    for kind in ("gpt2", "llama", "qwen3"):
        model: Any = tiny(kind)
        token, live = prompts(4, 21)
        found = []
        for ours in (True, False):
            model.zero_grad()
            if ours:
                decoder = shared.read(model)
                x = shared.hidden(decoder, token, shared.positions(live), shared.causal(live))
                logits = decoder.head(x)
            else:
                logits = model(token, attention_mask=live.long(), position_ids=shared.positions(live)).logits
            logp = logits.log_softmax(-1)[:, :-1].gather(-1, token[:, 1:, None])[..., 0]
            loss = (logp * live[:, :-1]).sum()
            loss.backward()
            found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
        assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
        for ours, theirs in zip(found[0][1], found[1][1], strict=True):
            assert float((ours - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max()))


def test_recomputing_layers_changes_no_gradient() -> None:
    model: Any = tiny()
    token, live = prompts(4, 21)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        decoder = shared.read(model)
        decoder.head(
            shared.hidden(decoder, token, shared.positions(live), shared.causal(live))
        ).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert shared.read(model).saves_memory
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_a_token_attends_only_to_what_it_is_shown() -> None:
    model: Any = tiny("llama")
    decoder = shared.read(model)
    token = torch.randint(2, WORDS, (1, 14))
    text = torch.tensor([0] * 6 + [1] * 8)
    position = torch.cat((torch.arange(6), torch.arange(8)))[None]
    seen = shared.causal(torch.ones(1, 14, dtype=torch.bool)) & (text[:, None] == text)
    packed = decoder.head(shared.hidden(decoder, token, position, seen))
    for part in (slice(0, 6), slice(6, 14)):
        assert torch.allclose(packed[:, part], model(token[:, part]).logits, atol=1e-4)


@ALL
def test_samples_have_the_distribution_of_the_model(generator: Any) -> None:
    words, temperature, count = 6, 0.8, 800 if generator is continuous else 4000
    model: Any = tiny(words=words)
    token, live = torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.bool)
    sampling = Sampling(2, temperature, eos=(EOS,), pad=PAD)
    made = drawn(generator, model, sampling, count, prompts=(token, live))
    expected: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        for first in range(words):
            p = (model(token).logits[0, -1] / temperature).softmax(-1)[first]
            if first == EOS:
                expected[first, PAD] = float(p)
                continue
            q = (model(torch.tensor([[2, 3, first]])).logits[0, -1] / temperature).softmax(-1)
            expected |= {(first, second): float(p * q[second]) for second in range(words)}
    if PAD in range(words):  # a pad that was drawn is a token like others, and told apart by its mask
        assert bool(made.mask[0].all())
    pairs = list(zip(*(row.tolist() for row in made.token), strict=True))
    chi = sum((pairs.count(pair) - count * p) ** 2 / (count * p) for pair, p in expected.items() if count * p >= 5)
    cells = sum(count * p >= 5 for p in expected.values())
    assert cells > 15
    assert chi < cells + 4 * (2 * cells) ** 0.5  # four standard deviations of chi-square

    wrong = {pair: 1 / len(expected) for pair in expected}
    off = sum((pairs.count(pair) - count * p) ** 2 / (count * p) for pair, p in wrong.items())
    assert off > 10 * len(expected)


def test_drawing_inverts_the_distribution_function() -> None:
    logp_all = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).log().expand(5, -1)
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.76, 1 - 2**-24])
    assert draw(logp_all, noise).tolist() == [1, 1, 3, 4, 4]


def test_narrowed_distributions_are_renormalised() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    near = functools.partial(torch.testing.assert_close, atol=1e-6, rtol=0)
    near(distribution(logits, Sampling(1, top_k=1, eos=(), pad=9), 0).exp(), torch.tensor([[1.0, 0, 0, 0]]))
    near(distribution(logits, Sampling(1, top_p=0.5, pad=9), 0).exp(), torch.tensor([[1.0, 0, 0, 0]]))
    near(distribution(logits, Sampling(1, top_p=0.85, pad=9), 0).exp(), torch.tensor([[5 / 9, 2 / 9, 2 / 9, 0]]))
    held = Sampling(2, eos=(0,), pad=9, min_tokens=1)
    near(distribution(logits, held, 0).exp(), torch.tensor([[0, 0.4, 0.4, 0.2]]))
    near(distribution(logits, held, 1).exp(), logits.exp())
    near(distribution(logits, Sampling(1, temperature=0.5, pad=9), 0), (2 * logits).log_softmax(-1))


@ALL
@pytest.mark.parametrize("narrow", [dict(top_k=3), dict(top_p=0.6), dict(min_tokens=4)], ids=str)
def test_log_probabilities_are_of_what_was_drawn_from(generator: Any, narrow: dict[str, Any]) -> None:
    """Both generators narrow alike: each one's log-probabilities are recomputed from the model's logits."""
    if generator is continuous and "min_tokens" in narrow:
        with pytest.raises(ConfigError, match="knows no min_tokens"):
            drawn(generator, tiny(), Sampling(6, **narrow))
        return
    model: Any = tiny()
    sampling = Sampling(6, 0.9, eos=(EOS,), pad=PAD, **narrow)
    made = drawn(generator, model, sampling, 2)
    token, live = (x.repeat_interleave(2, 0) for x in prompts())
    for t in range(6):
        seen = torch.cat((live, made.mask[:t].t()), 1)
        whole = torch.cat((token, made.token[:t].t()), 1)
        with torch.no_grad():
            out = model.eval()(whole, attention_mask=seen.long(), position_ids=shared.positions(seen)).logits[:, -1]
        expected = distribution(out, sampling, t).gather(-1, made.token[t][:, None])[:, 0]
        rows = made.mask[t]
        assert torch.allclose(made.logp[t][rows], expected[rows], atol=1e-5)


@ALL
def test_padding_changes_nothing_but_rounding(generator: Any) -> None:
    model = tiny("llama")
    sampling = Sampling(10, 0.7, eos=(EOS,), pad=PAD)
    token, live = prompts()
    made = drawn(generator, model, sampling, 2)
    wider = nn.functional.pad(token, (5, 0), value=PAD), nn.functional.pad(live, (5, 0))
    again = drawn(generator, model, sampling, 2, prompts=wider)
    assert torch.equal(made.token, again.token)
    assert torch.allclose(made.logp, again.logp, atol=1e-5)


@ALL
def test_completions_end_with_the_eos_that_was_drawn_or_at_the_length(generator: Any) -> None:
    sampling = Sampling(15, eos=(EOS, 5), pad=PAD)
    made = drawn(generator, tiny(), sampling, 8)
    assert made.token.dtype == torch.int64
    assert made.mask.dtype == torch.bool
    assert made.logp.dtype == torch.float32
    lengths = set()
    for lane in range(48):
        token, mask = made.token[:, lane].tolist(), made.mask[:, lane].tolist()
        ends = [t for t, x in enumerate(token) if x in (EOS, 5)]
        length = ends[0] + 1 if ends else 15
        lengths.add(bool(ends))
        assert mask == [t < length for t in range(15)]
        assert token[length:] == [PAD] * (15 - length)
        assert made.logp[length:, lane].abs().sum() == 0
    assert lengths == {True, False}


@BOTH
def test_no_end_comes_before_the_least_length(generator: Any) -> None:
    sampling = Sampling(8, eos=(EOS, 5, 7), pad=PAD)
    assert int(drawn(generator, tiny(), sampling, 8).mask.sum(0).min()) < 5
    held = Sampling(8, eos=(EOS, 5, 7), pad=PAD, min_tokens=4)
    assert int(drawn(generator, tiny(), held, 8).mask.sum(0).min()) == 5


@ALL
def test_temperature_zero_is_the_most_likely_token(generator: Any) -> None:
    model: Any = tiny().eval()
    token, live = prompts()
    made = drawn(generator, model, Sampling(6, 0.0, eos=(EOS,), pad=PAD))
    assert made.logp.abs().max() == 0
    for lane in range(6):
        text = token[lane][live[lane]]
        for t in range(int(made.mask[:, lane].sum())):
            with torch.no_grad():
                best = model(text[None]).logits[0, -1].argmax()
            assert made.token[t, lane] == best
            text = torch.cat((text, best[None]))


def test_prompts_read_once_are_prompts_read_each_time() -> None:
    model = tiny("llama")
    sampling = Sampling(20, eos=(EOS,), pad=PAD)
    grouped = drawn(decode, model, sampling, 4)
    token, live = (x.repeat_interleave(4, 0) for x in prompts())
    single = drawn(decode, model, sampling, 1, prompts=(token, live))
    assert torch.equal(grouped.token, single.token)
    assert torch.allclose(grouped.logp, single.logp, atol=1e-5)


def test_dropping_lanes_that_ended_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    keep = Cache.keep
    monkeypatch.setattr(Cache, "keep", lambda self, rows: taken.append(len(rows)) or keep(self, rows))
    monkeypatch.setattr(generation, "LOOK", 2)
    sampling = Sampling(60, eos=(EOS, 3), pad=PAD)
    fewer = drawn(decode, tiny(), sampling, 8)
    assert len(taken) >= 2
    monkeypatch.setattr(generation, "FULL", -1.0)
    assert same(fewer, drawn(decode, tiny(), sampling, 8))


@ALL
def test_generation_follows_from_the_seed(generator: Any) -> None:
    model, sampling = tiny(), Sampling(10, eos=(EOS,), pad=PAD)
    assert same(drawn(generator, model, sampling, 3), drawn(generator, model, sampling, 3))
    assert not same(drawn(generator, model, sampling, 3), drawn(generator, model, sampling, 3, seed=8))


@ALL
def test_nothing_is_dropped_out_and_modes_are_put_back(generator: Any) -> None:
    sampling = Sampling(10, eos=(EOS,), pad=PAD)
    model: Any = tiny(dropout=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    made = drawn(generator, model, sampling, 2)
    assert [module.training for module in model.modules()] == modes
    assert same(made, drawn(generator, tiny(dropout=0.0), sampling, 2))
    assert agreement(generator, model, *prompts(), sampling, 2) < 1e-5
    broken = tiny(dropout=0.5).train()
    broken.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError), generation.generating(broken):
        broken.forward()
    assert broken.training


@pytest.mark.parametrize("generator", [generate, continuous], ids=lambda f: f.__name__)
def test_settings_of_the_models_folder_are_put_aside(generator: Any) -> None:
    model: Any = tiny()
    sampling = Sampling(10, eos=(EOS,), pad=PAD)
    plain = drawn(generator, model, sampling, 2)
    own = transformers.GenerationConfig(repetition_penalty=3.0, top_k=2, forced_eos_token_id=EOS, min_p=0.4)
    model.generation_config = own
    assert same(plain, drawn(generator, model, sampling, 2))
    assert model.generation_config is own


def test_bfloat16_is_near() -> None:
    model = tiny("llama", sharp=1.0)
    sampling = Sampling(20, eos=(EOS,), pad=PAD)
    off = agreement(functools.partial(decode, dtype=torch.bfloat16), model, *prompts(), sampling, 4)
    assert 0 < off < 0.05


def test_a_model_that_is_not_known_goes_to_transformers(caplog: pytest.LogCaptureFixture) -> None:
    windowed = tiny("mistral", sliding_window=4)
    assert not shared.knows(windowed)
    assert not shared.knows(tiny(scale_attn_by_inverse_layer_idx=True))
    sampling = Sampling(10, eos=(EOS,), pad=PAD)
    made = drawn(decode, windowed, sampling, 2)
    assert "MistralForCausalLM" in caplog.text
    assert same(made, drawn(generate, windowed, sampling, 2))


def test_adapters_are_in_what_is_generated() -> None:
    peft = pytest.importorskip("peft")
    for kind, names in (("gpt2", ["c_attn", "c_fc"]), ("llama", ["q_proj", "down_proj"])):
        wrapped = peft.get_peft_model(
            tiny(kind), peft.LoraConfig(target_modules=names, init_lora_weights=False, fan_in_fan_out=kind == "gpt2")
        )
        sampling = Sampling(10, 0.7, eos=(EOS,), pad=PAD)
        made = drawn(decode, wrapped, sampling, 2)
        expected = reference_logp(wrapped, *prompts(), made, 0.7, 2)
        assert float(((made.logp - expected) * made.mask).abs().max()) < 1e-5
        with wrapped.disable_adapter():
            bare = drawn(decode, wrapped, sampling, 2)
        assert same(bare, drawn(decode, tiny(kind), sampling, 2))
        assert not torch.equal(bare.logp, made.logp)


def test_what_cannot_work_is_said() -> None:
    model = tiny()
    token, live = prompts()
    for wrong in (
        dict(max_tokens=0),
        dict(max_tokens=1, temperature=-1.0),
        dict(max_tokens=1, top_k=0),
        dict(max_tokens=1, top_p=0.0),
        dict(max_tokens=1, eos=(PAD,)),
        dict(max_tokens=1, min_tokens=2),
    ):
        with pytest.raises(ConfigError):
            Sampling(**wrong)
    for generator in (decode, generate, continuous):
        with pytest.raises(ConfigError, match="padded on the left"):
            generator(model, token, live.flip(1), Sampling(4, eos=(EOS,)))
        with pytest.raises(ConfigError, match="context of 512"):
            generator(model, token, live, Sampling(504, eos=(EOS,)))
        with pytest.raises(ConfigError, match="not empty"):
            generator(model, token[:, :0], live[:, :0], Sampling(4, eos=(EOS,)))
