"""What is asked for reaches the part that does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proximo import ConfigError, language
from proximo.errors import GenerationError, RunFolderError
from proximo.models.language import policy as policy_module
from proximo.models.language.rows import LOGITS, together
from proximo.rewards import lowest, pessimistic
from proximo.run.language.build import LanguageTrain, reward_model
from proximo.run.language.chatting import chat
from proximo.run.language.speaker import ModelReward, Speaker
from proximo.sources.generation import Completions, decode
from proximo.sources.text.padding import completions
from tests.language import tiny
from tests.language.conftest import Train, letters, rows, saved
from tests.language.test_runs import collected

Finished = Callable[[str], LanguageTrain]

pytestmark = pytest.mark.usefixtures("quick")


def test_an_engine_of_ones_own_samples_and_is_asked_for_again(model: Path, tmp_path: Path) -> None:
    asked = []

    def engine(*request: Any) -> Completions:
        asked.append(request[0])
        return decode(*request)

    settings: dict[str, Any] = dict(batch=4, group=2, max_tokens=4, held_out=0.2, eval_prompts=2, threads=1, quiet=True)
    run = language.train(
        model, rows(), "grpo", reward=letters, generator=engine, out=tmp_path / "run", steps=2, **settings
    )
    assert len(asked) >= 3  # two collections and an evaluation
    assert run.config.yours == ("data", "reward", "generator")
    with pytest.raises(Exception, match="the generator of this run came from Python"):
        language.resume(run.folder, rows(), reward=letters, steps=4)
    again = language.resume(run.folder, rows(), reward=letters, generator=engine, steps=4, quiet=True)
    assert again.step == 4


def test_continuous_batching_trains(train: Train, tmp_path: Path) -> None:
    few: dict[str, Any] = dict(steps=1, eval_every=0, eval_prompts=1, group=2, batch=2)
    run = train("grpo", tmp_path / "run", generator="continuous", **few)
    assert run.step == 1


def test_prompts_that_scored_alike_are_exchanged(train: Train, tmp_path: Path) -> None:
    """Where no completion ever scores, all are drawn again, and again."""
    never: dict[str, Any] = dict(rewards=("exact_match",), steps=1, eval_every=0, group=2, max_tokens=1)
    once = train("dapo", tmp_path / "once", **never)
    thrice = train("dapo", tmp_path / "thrice", resample=2, **never)
    assert int(thrice.source.loader.position) == 3 * int(once.source.loader.position)
    with pytest.raises(ConfigError, match="resample exchanges groups"):
        train("ppo", tmp_path / "no", resample=1)


def test_margins_of_the_data_are_learned(model: Path, tmp_path: Path) -> None:
    pairs = [dict(prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"]) for row in rows()]
    settings: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, max_tokens=6, threads=1, quiet=True, centering=0.0)
    losses = []
    for margin in (None, 3.0):
        data = [row if margin is None else {**row, "margin": margin} for row in pairs]
        run = language.train(model, data, "reward", out=tmp_path / str(margin), **settings)
        losses.append(run.metrics["reward_loss"])
    assert losses[1] > losses[0] + 2  # −log σ(r_c − r_r − 3), rewards still near zero
    broken = [{**row, "margin": "much"} for row in pairs]
    with pytest.raises(ConfigError, match="is 'much': it must be a finite number"):
        language.train(model, broken, "reward", out=tmp_path / "broken", **settings)


def test_a_reward_model_ends_with_mean_zero_and_deviation_one(finished: Finished) -> None:
    run = finished("reward")
    model, words = reward_model(run.folder)
    judge = ModelReward(model, words, words.tokenizer)
    held = run.agent.held
    found = [judge.scores([list(each.prompt)] * 2, [list(answer) for answer in each.answers]) for each in held]
    assert np.mean(found) == pytest.approx(0, abs=1e-4)
    assert np.std(found, ddof=1) == pytest.approx(1, abs=1e-4)


def test_reward_models_are_an_ensemble_from_python(finished: Finished, train: Train, tmp_path: Path) -> None:
    one, other = finished("reward").folder, train("reward", tmp_path / "other", seed=1, steps=2).folder
    judges: list[Any] = [language.judge(one), language.judge(other)]
    asked: Any = (["a 1", "b 2 +"], ["a a", "b z z"], [], [], [True, False])
    found = [judge(*asked) for judge in judges]
    worst = lowest(judges)(*asked[:2], prompt_ids=[], completion_ids=[], ended=asked[4])
    assert worst == [min(pair) for pair in zip(*found, strict=True)]
    run = train("grpo", tmp_path / "run", reward=pessimistic(judges), steps=1, group=2, eval_every=0)
    assert run.finished


def test_a_run_that_was_stopped_at_its_very_end_is_finished_by_resume(finished: Finished, tmp_path: Path) -> None:
    """Between the last checkpoint and the model's file."""
    for algo in ("sft", "reward"):
        whole = finished(algo).folder
        run = Path(shutil.copytree(whole, tmp_path / algo))
        names = ("model.safetensors", "trained-steps.txt")
        for name in names:
            (run / "model" / name).unlink()
        language.resume(run, quiet=True)
        for name in names:
            assert (run / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
        with pytest.raises(RunFolderError, match="is complete"):
            language.resume(run, quiet=True)


def test_a_reward_model_goes_on_as_if_in_one(train: Train, tmp_path: Path) -> None:
    short = train("reward", tmp_path / "run", steps=3, anneal_lr=False)
    reward: Any = short.policy
    assert float(reward.gain) != 1
    again = language.resume(short.folder, steps=6, quiet=True)
    whole = train("reward", tmp_path / "whole", anneal_lr=False)
    for one, other in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_engine_that_gives_what_it_may_not_is_told(train: Train, tmp_path: Path) -> None:
    def gap(*request: Any) -> Completions:
        made = decode(*request)
        mask = made.mask.clone()
        mask[0, 0] = False
        return made._replace(mask=mask)

    def short(*request: Any) -> Completions:
        return Completions(*(x[:2] for x in decode(*request)))

    with pytest.raises(GenerationError, match="mask must be true from a completion's first token"):
        train("grpo", tmp_path / "gap", generator=gap)
    with pytest.raises(GenerationError, match=r"gave token \[2, 32\], not \[6, 32\]"):
        train("grpo", tmp_path / "short", generator=short)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_samples_in_the_precision_that_is_learned_in(precision: str, train: Train, tmp_path: Path) -> None:
    """Adapters, and whatever our own decoder does not convert, follow torch's autocast."""
    asked = []

    def engine(*request: Any) -> Completions:
        asked.append(torch.is_autocast_enabled("cpu"))
        return decode(*request)

    train("grpo", tmp_path / "run", generator=engine, precision=precision, lora=2, steps=1, group=2, eval_every=0)
    assert set(asked) == {precision == "bfloat16"}


def test_the_bound_is_measured_from_the_learners_own_numbers(train: Train, tmp_path: Path) -> None:
    """An engine that computes otherwise has moved no policy."""

    def off(*request: Any) -> Completions:
        made = decode(*request)
        return made._replace(logp=made.logp - 0.7 * made.mask)

    run = train("grpo", tmp_path / "run", generator=off, importance_cap=2.0, max_kl=0.01, lr=1e-6, steps=2, group=2)
    drift = [json.loads(line) for line in (run.folder / "drift.jsonl").read_text().splitlines()]
    assert len(drift) == 2
    assert all(row["alpha"] == 1 and row["kl"] < 1e-4 for row in drift)


def test_prompts_of_one_token_are_learned_from_as_they_were_sampled(train: Train, tmp_path: Path) -> None:
    """Sums over keys are parted at the prompt's end there too, though a policy remembers nothing before it."""
    data = [dict(prompt=letter) for letter in "abcdefghij"]
    for length in (6, 20):
        run = train("grpo", tmp_path / str(length), data=data, steps=1, group=4, max_tokens=length)
        batch, policy = collected(run), run.agent.policy
        assert torch.equal(policy.evaluate(batch).logp[batch.mask], batch.logp[batch.mask])


def test_a_run_whose_drift_was_only_told_goes_on_until_it_strays(train: Train, tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", steps=2)
    again = language.resume(run.folder, reward=letters, steps=6, stop_drift=1e-9, quiet=True)
    assert again.strayed is not None
    assert again.step < 6
    with pytest.raises(ConfigError, match="was begun without a reference"):
        language.resume(train("dapo", tmp_path / "dapo", steps=1).folder, reward=letters, steps=2, stop_drift=1.0)


def test_what_a_gpu_trained_goes_on_and_is_judged_without_one(train: Train, tmp_path: Path) -> None:
    run = train("grpo", tmp_path / "run", steps=2, group=2)
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU: use --device cpu"):
            language.resume(run.folder, reward=letters, steps=3)
        assert language.evaluate(run.folder, reward=letters).score.returns
    assert language.resume(run.folder, reward=letters, steps=3, device="cpu", quiet=True).step == 3


def test_the_bound_knows_how_far_the_reference_is(train: Train, tmp_path: Path) -> None:
    """With no KL in its loss too."""
    run = train("dapo", tmp_path / "run", max_kl=1.0, steps=3, group=2)
    drift = [json.loads(line) for line in (run.folder / "drift.jsonl").read_text().splitlines()]
    assert drift[-1]["drift"] != 0


def test_evaluations_have_room_for_logits(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    bound = policy_module.together

    def together(batch: Any, vocabulary: int = 1) -> int:
        seen.append(vocabulary)
        return bound(batch, vocabulary)

    monkeypatch.setattr(policy_module, "together", together)
    for algo in ("sft", "dpo"):
        policy: Any = finished(algo).policy
        language.evaluate(finished(algo).folder)
        assert set(seen) == {policy.vocabulary}


def test_models_that_are_not_asked_the_same_do_not_compete(finished: Finished, train: Train, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    small = saved(tmp_path / "small", tiny.llama(len(words.get_vocab()), context=10), words)
    run = train("grpo", tmp_path / "run", rewards=("exact_match",), too_long="drop", steps=1, group=2)
    data = tmp_path / "prompts.jsonl"
    asked = [dict(prompt=prompt, answer="a") for prompt in ("a b c d e f", "a", "b", "c")]
    data.write_text("".join(json.dumps(row) + "\n" for row in asked))
    with pytest.raises(ConfigError, match="of 4 prompts here 3 there"):
        language.evaluate(run.folder, data, against=str(small))


def test_a_finished_run_is_an_opponent_whatever_trained_it(finished: Finished, data: Path) -> None:
    """PPO has a critic, SFT has none."""
    ppo, sft = finished("ppo").folder, finished("sft").folder
    found = language.evaluate(ppo, against=str(sft), prompts=4, reward=letters)
    assert found.wins is not None
    assert 0 <= found.wins <= 1


def test_all_of_other_data_is_evaluated(finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows(7)))
    found = language.evaluate(finished("grpo").folder, data=other, reward=letters)
    assert len(found.score.returns) == 7


def test_dr_grpos_constant_is_the_runs_longest(finished: Finished) -> None:
    assert finished("dr_grpo").config.algorithm.max_length == 6


@pytest.mark.parametrize(
    ("algo", "settings", "words"),
    [
        ("dpo", dict(max_kl=0.1), "max_kl and stop_drift are for what a policy sampled"),
        ("sft", dict(stop_drift=1.0), "max_kl and stop_drift are for what a policy sampled"),
        ("grpo", dict(max_kl=0.1, precision="bfloat16"), "measures more precisely than bfloat16"),
        ("sft", dict(pack=16, minibatches=2), "pack fills as many rows as the texts need"),
        ("ppo", dict(beta=0.0, target_kl=1.0), "target_kl leads beta, which is 0"),
        ("ipo", dict(beta=0.0), "beta is 0"),
    ],
)
def test_what_could_not_work_is_refused(
    algo: str, settings: dict[str, Any], words: str, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(algo, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_adapter_alone_is_no_model(model: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter: merge it"):
        language.train(folder, data, "sft", out=tmp_path / "run")


TALK = [{"role": "user", "content": "a b"}]


def test_where_messages_were_learned_chat_speaks_by_the_template(model: Path, tmp_path: Path) -> None:
    data = [dict(messages=[*TALK, {"role": "assistant", "content": letter}]) for letter in "abcdefghij"]
    settings: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, threads=1, quiet=True)
    run = language.train(model, data, "sft", out=tmp_path / "run", **settings)
    assert run.config.conversation
    speaker = language.load(run.folder)
    assert speaker.words.decode(speaker.tokens(TALK)) == "<user> a b <assistant>"
    heard: list[Any] = []
    completed = Speaker.complete
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Speaker, "complete", lambda s, prompts, *a: heard.extend(prompts) or completed(s, prompts, *a))
        chat(run.folder, "a b", 4, 0.0, 0)
    assert heard[0][0] == TALK[0]
    texts = language.train(model, rows(), "sft", out=tmp_path / "texts", **settings)
    assert not texts.config.conversation


def test_packed_texts_are_evaluated_one_by_one(train: Train, tmp_path: Path) -> None:
    packed, plain = (train("sft", tmp_path / str(pack), steps=1, lr=1e-9, pack=pack) for pack in (24, None))
    assert packed.score is not None
    assert plain.score is not None
    assert packed.score.returns == pytest.approx(plain.score.returns, abs=1e-5)


def test_chat_remembers_the_conversation(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [dict(messages=[*TALK, {"role": "assistant", "content": letter}]) for letter in "abcdefghij"]
    run = language.train(model, data, "sft", out=tmp_path / "run", steps=1, batch=4, held_out=0.2, quiet=True)
    heard, lines = list[list[str]](), iter(["a", "b", ""])

    def complete(self: Speaker, prompts: Any, *rest: Any) -> list[str]:
        heard.append([turn["content"] for turn in prompts[0]])
        return ["z"]

    monkeypatch.setattr(Speaker, "complete", complete)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat(run.folder, None, 4, 0.0, 0)
    assert heard == [["a"], ["a", "z", "b"]]
    assert capsys.readouterr().out == "z\nz\n"


def test_answers_are_cut_by_the_context_alone_unless_asked(model: Path, tmp_path: Path) -> None:
    """A context of 64 tokens: 3 of the prompt, 61 of the answer, EOS included."""
    data = [dict(prompt="a b c", completion=" ".join("d" * 80)) for _ in range(6)]
    whole: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, quiet=True, eval_prompts=1)
    run = language.train(model, data, "sft", out=tmp_path / "run", **whole)
    assert {len(each.answers[0]) for each in run.agent.held} == {61}
    short = language.train(model, data, "sft", out=tmp_path / "short", max_tokens=7, **whole)
    assert {len(each.answers[0]) for each in short.agent.held} == {7}
    group = language.train(model, rows(), "grpo", reward=letters, out=tmp_path / "group", group=2, **whole)
    assert group.config.run.max_tokens == 32  # half of the context


@pytest.mark.parametrize("critic", ["separate", "mini"])
def test_checkpointing_reaches_critics_and_changes_no_number(critic: str, train: Train, tmp_path: Path) -> None:
    few: dict[str, Any] = dict(steps=2, eval_every=0, eval_prompts=1)
    algo = "asymmetric_ppo" if critic == "mini" else "ppo"
    plain, saving = (train(algo, tmp_path / str(on), critic=critic, checkpointing=on, **few) for on in (False, True))
    policy: Any = saving.policy
    trunks = policy.critic.trunks
    assert all(layer.training and layer.gradient_checkpointing for trunk in trunks for layer in trunk.layers)
    for one, other in zip(plain.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_goes_on_from_another_folder(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "rows.jsonl").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, max_tokens=6, threads=1, quiet=True)
    run = language.train("model", "rows.jsonl", "sft", out=tmp_path / "run", **settings)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert language.resume(run.folder, steps=2, quiet=True).step == 2


def test_an_opponent_may_have_other_words(finished: Finished, tmp_path: Path) -> None:
    words = tiny.tokenizer(pad_token="<nothing>", bos_token=None)
    other = saved(tmp_path / "other", tiny.llama(len(words.get_vocab()), seed=3), words)
    found = language.evaluate(finished("grpo").folder, against=str(other), prompts=4, reward=letters)
    assert found.wins is not None
    assert 0 <= found.wins <= 1


def test_pieces_have_room_for_logits() -> None:
    batch = completions([[5, 6]] * 64, [[7] * 32] * 64, 0)
    assert together(batch) == 128  # of 33 tokens each
    assert together(batch, 2**20) == LOGITS // (32 * 2**20) == 8
    assert together(batch, 2**40) == 1
