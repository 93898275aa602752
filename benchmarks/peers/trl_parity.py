"""The losses of Proximo and of TRL on the same batches: one model, whose gradients both take.

Completions are sampled, then the policy moves, so that ratios are not one; the reference is another model still. TRL
gets the tokens, the old log-probabilities and the rewards' advantages by its own formulas; Proximo's algorithms get the
batch and the rewards.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import transformers
import trl
from datasets import Dataset
from language_works import THREADS
from machine import versions
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.utils import nanstd

from proximo.algorithms.language import LANGUAGE, config
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.models.language.hub import causal_model
from proximo.models.language.policy import LanguagePolicy
from proximo.models.language.reward import RewardModel
from proximo.sources.generation import decode
from proximo.sources.sampling import Sampling
from proximo.sources.text.padding import completions, pairs
from proximo.sources.tokens import batch_of

PAD, EOS, PROMPTS, GROUP, WIDTH, LENGTH = 0, 1, 6, 4, 12, 20
POSITIONS = "TRL gives left-padded rows no position ids: in a model with absolute positions they move with the padding"
AVERAGE = "TRL takes the mean over each side's tokens, Proximo the sum, as equation 17 of the paper does"


class Scene:
    """A model, what it sampled before it moved, and a reference."""

    def __init__(self, folder: Path, padded: bool = False) -> None:
        torch.manual_seed(0)
        self.folder, self.tokenizer = folder, AutoTokenizer.from_pretrained(folder)
        self.model = causal_model(folder)
        wander(self.model, 0.08)
        token = torch.randint(2, 512, (PROMPTS, WIDTH))
        live = torch.arange(WIDTH) >= torch.arange(PROMPTS)[:, None] * int(padded)
        sampling = Sampling(LENGTH, eos=(EOS, *range(480, 512)), pad=PAD)  # many ends, so that lengths differ
        made = decode(self.model, token.where(live, PAD), live, sampling, GROUP)
        self.rewards = torch.randn(PROMPTS * GROUP)
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        wander(self.reference, 0.01)
        wander(self.model, 0.01)
        self.policy = LanguagePolicy(self.model, self.reference)
        batch = batch_of(token.where(live, PAD), live, made, GROUP, sampling.eos)
        batch = batch.replace(ref_logp=self.policy.reference_logp(batch))
        self.batch = batch.replace(reward=torch.where(batch.terminated, self.rewards, 0))
        self.prompt = {"prompt_ids": token.where(live, PAD), "prompt_mask": live.long()}

    def inputs(self, advantages: Tensor) -> dict[str, Tensor]:
        """The batch as TRL has it."""
        b = self.batch
        return {
            **{name: x.repeat_interleave(GROUP, 0) for name, x in self.prompt.items()},
            "completion_ids": b.action.T,
            "completion_mask": b.mask.T.long(),
            "old_per_token_logps": b.logp.T,
            "old_logps": (b.logp * b.mask).sum(0),
            "ref_per_token_logps": b.ref_logp.T,
            "num_items_in_batch": b.mask.sum(),
            "advantages": advantages,
        }

    def texts(self) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and two sampled completions of each, the chosen ones before the rejected."""
        lanes = zip(self.batch.action.T, self.batch.mask.T, strict=True)
        found = [token[live].tolist() for token, live in lanes]
        return self.prompt["prompt_ids"].tolist(), [*found[::GROUP], *found[1::GROUP]]


@torch.no_grad()
def wander(model: Any, far: float) -> None:
    for parameter in model.parameters():
        parameter.add_(far * torch.randn_like(parameter))


def ours(name: str, policy: Any, batch: Batch, **numbers: Any) -> Tensor:
    """The loss that an algorithm would descend on this batch."""
    found: list[Any] = []

    def kept(policy: Any, optimizer: Any, objective: Any, batch: Batch, *args: Any, **more: Any) -> dict[str, Any]:
        found[:] = objective, batch
        return {}

    sgd, config.sgd = config.sgd, kept
    try:
        algorithm = LANGUAGE[name]
        with compiling(False):
            algorithm(policy, algorithm.Config(**numbers)).step(batch, 0.0)
    finally:
        config.sgd = sgd
    objective, batch = found
    return objective(policy.evaluate(batch), batch)[0]


def trainer(scene: Scene, kind: str, columns: list[str], model: Any = None, **numbers: Any) -> Any:
    """One of TRL's, around the scene's model; it is never run."""
    more: dict[str, Any] = (
        dict(reward_funcs=lambda completions, **rest: [0.0] * len(completions)) if kind in ("GRPO", "RLOO") else {}
    )
    if kind == "DPO":
        more = dict(ref_model=scene.reference)
    if kind in ("GRPO", "RLOO"):
        numbers |= dict(num_generations=GROUP, max_completion_length=LENGTH)
    settings = getattr(trl, f"{kind}Config")(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * GROUP, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True, max_steps=1, **numbers,
    )  # fmt: skip
    made = getattr(trl, f"{kind}Trainer")(
        model=scene.model if model is None else model,
        args=settings,
        train_dataset=Dataset.from_list([dict.fromkeys(columns, "w2 w3 w4")] * 32),
        processing_class=scene.tokenizer,
        **more,
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def grouped(scene: Scene, kind: str, beta: float = 0.0) -> Tensor:
    """TRL's advantages: its formulas, for they lie in the middle of what samples."""
    b = scene.batch
    rewards = scene.rewards - beta * ((b.logp - b.ref_logp) * b.mask).sum(0)
    groups = rewards.view(PROMPTS, GROUP)
    if kind == "RLOO":
        return rewards - ((groups.sum(1, keepdim=True) - groups) / (GROUP - 1)).view(-1)
    centred = rewards - groups.mean(1).repeat_interleave(GROUP)
    return centred if kind == "none" else centred / (nanstd(groups, dim=1).repeat_interleave(GROUP) + 1e-4)


def row(name: str, a: Tensor, b: Tensor, over: Any, theirs: Any = None, why: str = "") -> dict[str, Any]:
    """Loss `a` of ours and `b` of TRL, and how far their gradients are apart, `theirs` by other parameters."""
    wanted = [p for p in over.parameters() if p.requires_grad]
    first = torch.autograd.grad(a, wanted, materialize_grads=True)
    second = torch.autograd.grad(b, [*(over if theirs is None else theirs).parameters()], materialize_grads=True)
    largest = max(x.abs().max() for x in second)
    gradient = max((x - y).abs().max() for x, y in zip(first, second, strict=True)) / largest
    found = dict(ours=a.item(), theirs=b.item(), apart=abs(a.item() - b.item()), gradient=gradient.item())
    print(name, found, file=sys.stderr, flush=True)
    return {"name": name, **found, "why": why}


def online(scene: Scene) -> list[dict[str, Any]]:
    """What learns from the policy's own completions."""
    near, by_ratio = dict(beta=0.04, use_bias_correction_kl=False), dict(beta=0.04, kl_ratio=True)
    plain, sequence = dict(beta=0.0), dict(beta=0.0, importance_sampling_level="sequence", epsilon=3e-3)
    cases: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
        ("GRPO, β = 0.04", "grpo", dict(loss_type="grpo", **near), dict(beta=0.04), "group"),
        ("GRPO, its KL by the ratio", "grpo", dict(loss_type="grpo", beta=0.04), by_ratio, "group"),
        ("Dr. GRPO", "dr_grpo", dict(loss_type="dr_grpo", **plain), dict(max_length=LENGTH), "none"),
        ("DAPO", "dapo", dict(loss_type="dapo", epsilon_high=0.28, **plain), {}, "group"),
        ("BNPO, DAPO's mean", "dapo", dict(loss_type="bnpo", epsilon_high=0.28, **plain), {}, "group"),
        ("CISPO", "cispo", dict(loss_type="cispo", epsilon_high=1.05, **plain), dict(ratio_bound=1.05), "group"),
        ("GSPO", "gspo", dict(loss_type="grpo", **sequence), dict(clip=3e-3, clip_high=3e-3), "group"),
    ]  # fmt: skip
    rows = []
    for name, algorithm, theirs, mine, scaled in cases:
        made = trainer(scene, "GRPO", ["prompt"], **theirs)
        loss = made._compute_loss(scene.model, scene.inputs(grouped(scene, scaled)))
        rows.append(row(name, ours(algorithm, scene.policy, scene.batch, **mine), loss, scene.model))
    made = trainer(scene, "RLOO", ["prompt"], beta=0.05)
    loss = made._compute_loss(scene.model, scene.inputs(grouped(scene, "RLOO", 0.05)))
    rows.append(row("RLOO, β = 0.05", ours("rloo", scene.policy, scene.batch, beta=0.05), loss, scene.model))
    return rows


def preferred(scene: Scene) -> list[dict[str, Any]]:
    """What learns from pairs and texts."""
    prompts, answers = scene.texts()
    chosen, rejected = answers[:PROMPTS], answers[PROMPTS:]
    batch = pairs(prompts, chosen, rejected, PAD)
    batch = batch.replace(ref_logp=scene.policy.reference_logp(batch))
    sides = [
        dict(prompt_ids=p, chosen_ids=c, rejected_ids=r) for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]
    rows = []
    for name, kind, algorithm, why in (("DPO", "sigmoid", "dpo", ""), ("IPO", "ipo", "ipo", AVERAGE)):
        made = trainer(scene, "DPO", ["prompt", "chosen", "rejected"], loss_type=[kind], beta=0.1)
        loss = made._compute_loss(scene.model, made.data_collator(sides), False)
        rows.append(row(name, ours(algorithm, scene.policy, batch, beta=0.1), loss, scene.model, why=why))
    made = trainer(scene, "SFT", ["prompt", "completion"])
    both = [p + c for p, c in zip(prompts * 2, answers, strict=True)]
    inputs = right(both)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :WIDTH] = -100
    loss = made.compute_loss(scene.model, {**inputs, "labels": labels})
    rows.append(row("SFT", ours("sft", scene.policy, completions(prompts * 2, answers, PAD)), loss, scene.model))
    return [*rows, rewarded(scene, batch, both)]


def right(rows: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    token = torch.tensor([each + [PAD] * (longest - len(each)) for each in rows])
    live = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in rows])
    return {"input_ids": token, "attention_mask": live}


def rewarded(scene: Scene, batch: Batch, both: list[list[int]]) -> dict[str, Any]:
    """The reward model: its head beside the same trunk."""
    judge = RewardModel(copy.deepcopy(scene.model))
    theirs = AutoModelForSequenceClassification.from_pretrained(scene.folder, num_labels=1, dtype=torch.float32)
    theirs.config.pad_token_id = PAD
    theirs.transformer.load_state_dict(judge.trunk.state_dict())
    with torch.no_grad():
        theirs.score.weight.copy_(judge.head.weight)
    made = trainer(scene, "Reward", ["chosen", "rejected"], theirs, center_rewards_coefficient=0.01)
    loss = made.compute_loss(made.model, right(both))
    name = "reward model, centred by 0.01"
    return row(name, ours("reward", judge, batch, centering=0.01), loss, judge.trunk, theirs.transformer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--material", type=Path, required=True)
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    folder = parser.parse_args().material / "model"
    scene, padded = Scene(folder), Scene(folder, padded=True)
    rows = online(scene) + preferred(scene)
    made = trainer(padded, "GRPO", ["prompt"], loss_type="grpo", beta=0.0)
    loss = made._compute_loss(padded.model, padded.inputs(grouped(padded, "group")))
    mine = ours("grpo", padded.policy, padded.batch, beta=0.0)
    rows.append(row("GRPO, prompts of different lengths", mine, loss, padded.model, why=POSITIONS))
    told = versions("proximo", "trl", "transformers", "torch")
    print(json.dumps({"versions": told, "rows": rows}))


if __name__ == "__main__":
    main()
