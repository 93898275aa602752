"""What a run may be asked for besides its algorithm: adapters, critics, packing, precision, memory, engines, bounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from proximo import language
from proximo.preferences import last_live
from proximo.run.checkpoint import all_of
from proximo.run.language.build import reward_model
from proximo.run.samples import page
from tests.conftest import rest_slow
from tests.language.conftest import Train, letters
from tests.language.test_runs import assert_same_run, cut, resumed

pytestmark = pytest.mark.usefixtures("quick")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapters, a shared critic": ("ppo", dict(lora=2, critic="shared")),
    "adapters, pairs": ("dpo", dict(lora=2)),
    "a critic of its own": ("ppo", dict(critic="separate", temperature=0.7)),
    "small critics": ("ppo", dict(critic="mini", minibatches=2, epochs=2)),
    "adapters, a reward": ("reward", dict(lora=2, checkpointing=True)),
    "packed": ("sft", dict(pack=24)),
    "whole texts": ("sft", dict(whole_text=True)),
    "bfloat16": ("grpo", dict(precision="bfloat16")),
    "layers computed again": ("grpo", dict(checkpointing=True)),
    "micro-batches": ("rloo", dict(micro_batch=3, at_once=5)),
    "transformers' engine": ("grpo", dict(generator="transformers", importance_cap=2.0)),
    "held to a bound": ("grpo", dict(max_kl=1e-5, lr=1e-2)),
    "an adaptive penalty": ("ppo", dict(target_kl=0.1, beta=0.2)),
    "a warm critic": ("ppo", dict(value_warmup=3, critic="separate")),
    "missing ends": ("reinforce_pp", dict(missing_eos=-1.0)),
}

QUICK = SETTINGS.keys() - {"adapters, pairs", "whole texts", "an adaptive penalty", "missing ends"}


def logged(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


@pytest.mark.parametrize("name", rest_slow(SETTINGS, QUICK))
def test_it_runs_and_goes_on_exactly(name: str, train: Train, tmp_path: Path) -> None:
    algo, settings = SETTINGS[name]
    whole = train(algo, tmp_path / "whole", **settings)
    broken = Path(shutil.copytree(whole.folder, tmp_path / "broken"))
    cut(broken, 2)
    assert resumed(broken).finished
    assert_same_run(whole.folder, broken)
    if algo == "reward":
        return
    speaker = language.load(whole.folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        asked, mine = speaker.policy.model(ids).logits, whole.agent.policy.model(ids).logits
        alone = AutoModelForCausalLM.from_pretrained(whole.folder / "model").eval()(ids).logits
    assert torch.equal(asked, mine)
    torch.testing.assert_close(alone, mine, rtol=0, atol=1e-6)
    assert speaker.complete(["a 1 +"], 5, seed=3) == speaker.complete(["a 1 +"], 5, seed=3)


def weights(train: Train, algo: str, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    return load_file(all_of(train(algo, out, steps=3, **settings).folder)[-1] / "model.safetensors")


@pytest.mark.parametrize("algo", rest_slow(["sft", "dpo", "grpo", "rloo", "reward", "asymmetric_ppo"], ["dpo", "rloo"]))
@pytest.mark.parametrize("settings", [dict(checkpointing=True), dict(micro_batch=3), dict(at_once=3)], ids=str)
def test_what_saves_memory_changes_nothing(algo: str, settings: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Three updates of Adam, whose steps of 1e-3 hang on the sign of gradients that are nearly zero.

    Prompts that rows share are read row by row where layers are computed again: gradients are summed in another order.
    """
    plain = weights(train, algo, tmp_path / "plain")
    spared = weights(train, algo, tmp_path / "spared", **settings)
    for name, tensor in plain.items():
        measured = name in ("gain", "bias")  # in the end, from all rewards: large where these are much alike
        torch.testing.assert_close(spared[name], tensor, rtol=1e-5 if measured else 0, atol=1e-6, msg=name)


def test_adapters_alone_are_saved_and_merged_in_the_end(model: Path, train: Train, tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", lora=2)
    saved = load_file(all_of(run.folder)[-1] / "model.safetensors")
    assert saved
    assert all("lora_" in name or name.startswith("critic.") for name in saved)
    first, last = (load_file(path / "model.safetensors") for path in (model, run.folder / "model"))
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_packed_and_padded_rows_teach_the_same(train: Train, tmp_path: Path) -> None:
    packed, padded = (weights(train, "sft", tmp_path / f"{pack}", pack=pack) for pack in (24, None))
    for name, tensor in packed.items():
        torch.testing.assert_close(padded[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_the_bound_is_never_exceeded(train: Train, tmp_path: Path) -> None:
    run = train("grpo", tmp_path / "run", max_kl=1e-5, lr=1e-2, steps=8)
    found = logged(run.folder, "drift.jsonl")
    assert len(found) == 8
    assert max(row["kl"] for row in found) <= 1e-5 < max(row["kl_asked"] for row in found)
    assert any(row["alpha"] < 1 for row in found)
    assert "cut or undone" in "\n".join(run.summary())


def test_a_run_that_strays_ends(train: Train, tmp_path: Path) -> None:
    run = train("dr_grpo", tmp_path / "run", stop_drift=0.05, lr=1e-2, steps=40, group=4)
    assert run.step < 40
    assert run.strayed is not None
    assert logged(run.folder, "drift.jsonl")[-1]["drift"] > 0.05
    assert all(row["drift"] <= 0.05 for row in logged(run.folder, "drift.jsonl")[:-1])
    assert (run.folder / "model" / "model.safetensors").exists()
    further = language.resume(run.folder, reward=letters, stop_drift=0.5, quiet=True)
    assert further.step > run.step


def test_samples_of_every_evaluation(train: Train, tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", eval_prompts=3)
    found = logged(run.folder, "samples.jsonl")
    assert [row["step"] for row in found] == [3] * 3 + [6] * 3
    assert all(found[0].keys() == {"step", "prompt", "completion", "reward", "kl"} == row.keys() for row in found)
    assert [row["prompt"] for row in found[:3]] == [row["prompt"] for row in found[3:]]
    assert [row["reward"] for row in found] == letters([], [row["completion"] for row in found])
    assert run.score is not None
    assert [row["reward"] for row in found[3:]] == run.score.returns
    page = (run.folder / "samples.md").read_text()
    assert "update 6" in page
    assert page.count("\n| ") == 4
    train("dapo", tmp_path / "other")
    assert all(row["kl"] is None for row in logged(tmp_path / "other", "samples.jsonl"))  # it keeps no reference
    cut(run.folder, 3)
    language.resume(run.folder, reward=letters, steps=5, quiet=True)
    assert {row["step"] for row in logged(run.folder, "samples.jsonl")} == {3, 5}


def test_a_run_that_learned_from_texts_has_no_samples(train: Train, tmp_path: Path) -> None:
    assert not (train("sft", tmp_path / "run").folder / "samples.jsonl").exists()


def test_a_page_of_samples_shows_and_does_not_obey() -> None:
    rows = [dict(step=3, prompt="a|b\n", completion="<b>*x*\x1b[2J", reward=0.5, kl=None), dict(step=1, prompt="old")]
    text = page(rows)
    assert "old" not in text
    assert "| 0.5 | – | a\\|b⏎ | \\<b\\>\\*x\\*\\\\x1b\\[2J |" in text


@pytest.mark.parametrize("lora", [None, 2])
def test_a_reward_model_is_a_reward(lora: int | None, train: Train, tmp_path: Path) -> None:
    judge = train("reward", tmp_path / "judge", lora=lora, lr=1e-2)
    model, words = reward_model(judge.folder)
    assert logged(judge.folder, "eval.jsonl")[-1]["return_mean"] == 1
    run = train("grpo", tmp_path / "run", rewards=(), reward_model=str(judge.folder))
    batch = run.source.collect(run.agent.policy)
    found = last_live(judge.agent.policy.evaluate(batch).value, batch.mask)
    torch.testing.assert_close(batch.reward.sum(0), found, rtol=0, atol=1e-6)
    assert words.tokenizer.get_vocab() == run.agent.words.tokenizer.get_vocab()
    assert model.head.weight.equal(judge.agent.policy.head.weight)
    broken = Path(shutil.copytree(run.folder, tmp_path / "broken"))
    cut(broken, 3)
    resumed(broken)
    assert_same_run(run.folder, broken)
