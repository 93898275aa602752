"""Every algorithm of language: micro-batches and order change nothing, state is all there is, dead rows are dead."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from proximo.algorithms.language import LANGUAGE, language_algorithm
from proximo.batch import Batch, tree_map
from proximo.errors import ConfigError, UnknownName
from proximo.state import restore
from tests.language.enumerable import SYMBOLS, TOKENS, Tabular, collected, until_stop, written

GROUPS, EACH = 3, 4
ONLINE = [name for name, algorithm in LANGUAGE.items() if algorithm.learns_from == "completions"]
NUMBERS: dict[str, dict[str, Any]] = {
    "ppo": dict(target_kl=0.1, kl_horizon=50, critic_lam=1.0, length_alpha=0.4, value_warmup=1, whiten_rewards=True),
    "grpo": dict(beta=0.1, kl_ratio=True),
    "gspo": dict(beta=0.1, kl_estimator="k2"),
    "dapo": dict(importance_low=0.5, importance_cap=5.0),
    "rloo": dict(kl_in="loss"),
    "dr_grpo": dict(max_length=8),
}


def made(name: str, **numbers: Any) -> tuple[Tabular, Any]:
    policy, algorithm = Tabular(prompts=GROUPS, critics=2), LANGUAGE[name]
    numbers = {"lr": 0.05, "epochs": 2, "minibatches": 1, **NUMBERS.get(name, {}), **numbers}
    return policy, algorithm(policy, algorithm.Config(**numbers))


def batch_for(name: str, seed: int = 0) -> Batch:
    """12 completions of 3 prompts that end where they may; or as many pairs, or texts."""
    generator = torch.Generator().manual_seed(seed)
    sides = (2,) if LANGUAGE[name].learns_from == "pairs" else ()
    action = torch.randint(SYMBOLS - 3, SYMBOLS, (TOKENS, GROUPS * EACH, *sides), generator=generator)
    prompt = torch.arange(GROUPS).repeat_interleave(EACH).view(-1, *[1] * len(sides)).expand(action.shape[1:])
    mask, reference = until_stop(action), Tabular(GROUPS, critics=2, seed=8)
    if name not in ONLINE:
        texts = written(action, prompt, mask)
        return texts.replace(ref_logp=reference.evaluate(texts).logp.detach())
    score = torch.randn(GROUPS * EACH, generator=generator, dtype=torch.float64)
    score[:EACH] = 1.0  # one group that scored alike
    behaviour = Tabular(GROUPS, critics=2, seed=7)
    batch = collected(behaviour, reference, action, prompt, score, mask=mask)
    return batch.replace(logp=batch.logp * 0.9, sampler_logp=batch.logp)


def learned(name: str, batch: Batch, steps: int = 2, **numbers: Any) -> tuple[Tensor, dict[str, float]]:
    policy, algorithm = made(name, **numbers)
    torch.manual_seed(1)
    for _ in range(steps):
        report = algorithm.step(batch, 0.25)
    return torch.cat([x.detach().reshape(-1) for x in policy.parameters()]), {k: float(v) for k, v in report.items()}


def agree(one: tuple[Tensor, dict[str, float]], other: tuple[Tensor, dict[str, float]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-10)
    assert one[1] == pytest.approx(other[1], abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("name", LANGUAGE)
def test_micro_batches_change_nothing(name: str) -> None:
    """Trap 3: uneven ones, of sequences whose lengths differ; the loss is that of the minibatch, as are gradients."""
    batch = batch_for(name)
    whole = learned(name, batch, minibatches=2)
    for micro in (1, 4, 100):
        agree(whole, learned(name, batch, minibatches=2, micro_batch=micro))


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_order_of_sequences_changes_nothing(name: str) -> None:
    batch = batch_for(name)
    order = torch.randperm(GROUPS * EACH)
    if name == "asymmetric_ppo":  # which critic learns from a completion goes by their order within a group
        order = torch.arange(GROUPS * EACH).view(GROUPS, EACH).T.reshape(-1)
    agree(learned(name, batch), learned(name, batch.map(lambda x: x[:, order])))


@pytest.mark.parametrize("name", LANGUAGE)
def test_padding_changes_nothing(name: str) -> None:
    """Two more rows that are dead, of numbers that are not."""
    batch = batch_for(name)

    def longer(x: Tensor) -> Tensor:
        end = x[:1].expand(2, *x.shape[1:])
        return torch.cat([x, torch.zeros_like(end) if x.dtype == torch.bool else end]) if len(x) == TOKENS else x

    padded = Batch(**{name: tree_map(longer, column) for name, column in vars(batch).items()})
    agree(learned(name, batch), learned(name, padded))


@pytest.mark.parametrize("name", LANGUAGE)
def test_numbers_in_dead_rows_count_nowhere(name: str) -> None:
    """Trap 9: NaN × 0 is NaN."""
    batch = batch_for(name)
    dead = {
        column: torch.where(batch.mask, getattr(batch, column), torch.nan)
        for column in ("logp", "ref_logp", "reward", "sampler_logp")
        if column in vars(batch)
    }
    spoiled = batch.replace(**dead)
    assert all(x.isnan().any() for x in dead.values())
    agree(learned(name, batch), learned(name, spoiled))


@pytest.mark.parametrize("name", LANGUAGE)
def test_restored_state_goes_on_bit_for_bit(name: str) -> None:
    policy, algorithm = made(name, minibatches=2, weight_decay=0.1)
    first, second = batch_for(name), batch_for(name, seed=5)
    torch.manual_seed(2)
    algorithm.step(first, 0.1)
    kept = {k: v.clone() for k, v in (algorithm.state_tensors() | policy.state_dict()).items()}
    torch.manual_seed(3)
    told = algorithm.step(second, 0.5)

    again, other = made(name, minibatches=2, weight_decay=0.1)
    restore(other.state_tensors() | again.state_dict(keep_vars=True), kept, "memory")
    torch.manual_seed(3)
    retold = other.step(second, 0.5)
    assert {k: float(v) for k, v in told.items()} == {k: float(v) for k, v in retold.items()}
    for one, two in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_config_tells_what_it_reads(name: str) -> None:
    """No column that it does not need is looked at; each that it needs is."""
    algorithm = made(name)[1]
    batch, needs = batch_for(name), algorithm.config.needs
    optional = {"ref_logp", "value", "values", "group", "sampler_logp"}
    assert needs <= optional
    algorithm.step(Batch(**{k: v for k, v in vars(batch).items() if k in needs or k not in optional}), 0.0)
    for column in needs:
        _, fresh = made(name, value_warmup=0) if name == "ppo" else made(name)
        with pytest.raises(AttributeError, match=f"no column '{column}'"):
            fresh.step(Batch(**{k: v for k, v in vars(batch).items() if k != column}), 0.0)


@pytest.mark.parametrize("name", LANGUAGE)
def test_configs_say_what_their_numbers_are_and_refuse_bad_ones(name: str) -> None:
    config = LANGUAGE[name].Config
    wanted = {"lr", "anneal_lr", "max_grad_norm", "betas", "weight_decay", "epochs", "minibatches", "micro_batch"}
    assert wanted <= {field.name for field in fields(config)}
    for bad in (dict(lr=0.0), dict(micro_batch=0), dict(weight_decay=-1.0), dict(minibatches=1.5)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            config(**bad)


def test_bad_numbers_of_some() -> None:
    refused = [
        ("grpo", dict(kl_in="both")), ("grpo", dict(kl_estimator="k4")), ("ppo", dict(lam=2.0)),
        ("dapo", dict(importance_low=0.5)), ("cispo", dict(importance_low=3.0, importance_cap=2.0)),
        ("gspo", dict(importance_cap=2.0)), ("rloo", dict(importance_cap=2.0)),
    ]  # fmt: skip
    for name, bad in refused:
        with pytest.raises(ConfigError, match=next(iter(bad))):
            LANGUAGE[name].Config(**bad)
    with pytest.raises(UnknownName, match="did you mean dr_grpo"):
        language_algorithm("dr-grpo")


@pytest.mark.parametrize("name", [name for name in ONLINE if "group" in made(name)[1].config.needs])
def test_a_group_of_one_is_refused(name: str) -> None:
    if name == "asymmetric_ppo":
        return  # its critics learn from what there is
    batch = batch_for(name)
    alone = batch.replace(group=batch.group + 10 * (torch.arange(GROUPS * EACH) == 2))
    with pytest.raises(ConfigError, match="prompt 10 of the collection has one completion alone"):
        learned(name, alone)


def test_sequences_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="minibatches is 5, into which 12 sequences do not divide"):
        learned("grpo", batch_for("grpo"), minibatches=5)
    pairs = batch_for("dpo")
    with pytest.raises(ConfigError, match="12 sequences"):
        learned("dpo", pairs, minibatches=8)


def test_groups_that_scored_alike_teach_dapo_nothing() -> None:
    """And weigh nothing: without them the update is the same."""
    batch = batch_for("dapo")
    agree(learned("dapo", batch), learned("dapo", batch.map(lambda x: x[:, EACH:])))


def test_ppo_warms_its_critic_up_and_leads_beta() -> None:
    policy, algorithm = made("ppo")
    before = policy.logits.clone(), policy.table.clone()
    batch = batch_for("ppo")
    report = algorithm.step(batch, 0.0)
    assert torch.equal(before[0], policy.logits)
    assert not torch.equal(before[1], policy.table)
    apart = torch.where(batch.mask, batch.logp - batch.ref_logp, 0).sum(0).mean().item()
    assert report["sequence_kl"] == pytest.approx(apart, abs=1e-12)
    assert algorithm.beta.value == pytest.approx(0.05, abs=1e-12)  # a policy that stands still says nothing of it
    algorithm.step(batch, 0.0)
    error = min(max(apart / 0.1 - 1, -0.2), 0.2)
    assert algorithm.beta.value == pytest.approx(0.05 * (1 + error * 12 / 50), abs=1e-12)
    assert not torch.equal(before[0], policy.logits)
