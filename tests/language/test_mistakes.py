"""What a user does wrong: one clear line, exit code 2, no traceback; and nothing that was learned is lost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from proximo import language
from proximo.algorithms.language.grpo import GRPO
from proximo.errors import (
    CheckpointError,
    ConfigError,
    GenerationError,
    OutOfMemory,
    RewardError,
    RunFolderError,
    memory_told,
)
from proximo.run.checkpoint import all_of
from tests.conftest import Complaint
from tests.language import tiny
from tests.language.conftest import Train, letters, rows, saved
from tests.language.test_runs import Finished, assert_same_run

pytestmark = pytest.mark.usefixtures("quick")
FEW = ["--steps", 2, "--batch", 2, "--max-tokens", 4, "--held-out", 0.2, "--threads", 1, "--quiet"]
MATCH = ["--rewards", "exact_match"]
ONE: dict[str, Any] = dict(held_out=0.2, steps=1, batch=2, max_tokens=4, threads=1)
Said = Callable[..., str]


@pytest.fixture
def said(complaint: Complaint, model: Path, data: Path, tmp_path: Path) -> Said:
    """The one line that an algorithm leaves; the folder is not made."""

    def told(algo: str, *argv: object, model: object = model, data: object = data) -> str:
        words = ["--model", model, "--data", data, "--out", tmp_path / "new", *FEW, *argv]
        line = complaint("language", algo, *words)
        assert not (tmp_path / "new").exists()
        assert len(line) < 500, line
        return line

    return told


def written(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.parametrize("algo", ["sft", "dpo", "grpo"])
def test_columns_that_are_missing(algo: str, said: Said, tmp_path: Path) -> None:
    line = said(algo, *(MATCH if algo == "grpo" else []), data=written(tmp_path / "x.jsonl", [dict(a="b", c="d")] * 9))
    assert "line 1" in line
    assert "has the columns a, c" in line


def test_the_column_that_a_reward_needs(said: Said, tmp_path: Path) -> None:
    line = said("grpo", *MATCH, data=written(tmp_path / "x.jsonl", [dict(prompt="a", label="b")] * 9))
    assert "exact_match needs the column answer" in line
    assert "label" in line


def test_prompts_that_do_not_fit(said: Said, tmp_path: Path) -> None:
    long = written(tmp_path / "x.jsonl", [*rows(9), dict(prompt="a " * 70, answer="a")])
    assert "longer than 60 tokens (the longest has 70)" in said("ppo", *MATCH, data=long)
    assert "max_tokens is 64, but the model's context has 64 tokens" in said("ppo", *MATCH, "--max-tokens", 64)
    assert "do not fit" in said("ppo", *MATCH, "--max-prompt", 61)


@pytest.mark.parametrize("lines", ["", "{", "[1]", '{"prompt": ""}\n' * 9, '{"prompt": 3}\n' * 9], ids=range(5))
def test_data_that_is_none(lines: str, said: Said, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines)
    bare = tmp_path / "x.jsonl"
    assert ("x.jsonl" if '""' not in lines else "the column answer") in said("ppo", *MATCH, data=bare)
    assert "there is no file" in said("ppo", *MATCH, data=tmp_path / "none.jsonl")


def test_texts_that_are_empty(said: Said, tmp_path: Path) -> None:
    empty = written(tmp_path / "x.jsonl", [*rows(9), dict(prompt="a", completion=" ")])
    assert "line 10: what should be learned is empty" in said("sft", data=empty)


def test_one_row_cannot_be_held_out(said: Said, tmp_path: Path) -> None:
    assert "held out" in said("sft", data=written(tmp_path / "x.jsonl", rows(1)))


@pytest.mark.parametrize("algo", ["grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "asymmetric_ppo"])
def test_a_group_of_one(algo: str, said: Said) -> None:
    assert "group" in said(algo, *MATCH, "--group", 1)


def test_tokenizers(said: Said, tmp_path: Path, data: Path) -> None:
    unpadded = saved(tmp_path / "unpadded", tiny.llama(), tiny.tokenizer(pad_token=None))
    assert language.train(unpadded, data, "sft", out=tmp_path / "run", quiet=True, **ONE).finished
    endless = saved(tmp_path / "endless", tiny.llama(), tiny.tokenizer(eos_token=None))
    assert "no EOS token" in said("sft", model=endless)
    for file in (endless / "tokenizer.json", endless / "tokenizer_config.json"):
        file.unlink()
    assert "tokenizer" in said("sft", model=endless)


def test_a_tokenizer_of_more_words_than_the_model(said: Said, tmp_path: Path) -> None:
    small = saved(tmp_path / "small", tiny.llama(20), tiny.tokenizer())
    assert "tokens" in said("sft", model=small)


def test_models_that_are_none(said: Said, tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json" in said("sft", model=tmp_path / "empty")
    assert "is no folder" in said("sft", model=tmp_path / "nowhere")
    pickled = Path(shutil.copytree(model, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in said("sft", model=pickled)
    (pickled / "pytorch_model.bin").unlink()
    assert "no *.safetensors" in said("sft", model=pickled)
    cut = Path(shutil.copytree(model, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    assert "cannot be loaded" in said("sft", model=cut)
    encoder = Path(shutil.copytree(model, tmp_path / "encoder"))
    (encoder / "config.json").write_text('{"model_type": "vit"}')
    assert "cannot be loaded" in said("sft", model=encoder)


def test_weights_that_are_not_all_there(said: Said, tmp_path: Path, model: Path) -> None:
    """transformers would begin with random numbers in their place."""
    from safetensors.torch import load_file, save_file

    part = Path(shutil.copytree(model, tmp_path / "part"))
    found = load_file(part / "model.safetensors")
    gone = next(name for name in found if "mlp" in name)
    save_file({k: v for k, v in found.items() if k != gone}, part / "model.safetensors", {"format": "pt"})
    assert gone in said("sft", model=part)
    save_file({**found, gone: torch.full_like(found[gone], math.nan)}, part / "model.safetensors", {"format": "pt"})
    assert "NaN" in said("sft", model=part)


def test_code_that_a_model_brings_is_not_run(said: Said, tmp_path: Path, model: Path) -> None:
    theirs = Path(shutil.copytree(model, tmp_path / "theirs"))
    config = json.loads((theirs / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (theirs / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    (theirs / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    assert "code of its own" in said("sft", model=theirs)
    assert not (tmp_path / "ran").exists()
    words = json.loads((model / "tokenizer_config.json").read_text())
    more = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Config", None]}}
    (theirs / "config.json").write_text(json.dumps(config))
    (theirs / "tokenizer_config.json").write_text(json.dumps({**words, **more}))
    assert "code of its own" in said("sft", model=theirs)
    assert not (tmp_path / "ran").exists()


def test_a_hub_that_cannot_be_reached(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "model nobody/nothing is no folder here, and the hub gave none" in said("sft", model="nobody/nothing")
    assert "nobody/nothing" in said("sft", data="nobody/nothing")


def test_names_that_nobody_knows(complaint: Complaint, said: Said) -> None:
    assert "did you mean ppo?" in complaint("language", "ppq", "--model", "m")
    assert "unknown reward 'exact_mach': did you mean exact_match?" in said("ppo", "--rewards", "exact_mach")
    assert "write name or name=weight" in said("ppo", "--rewards", "exact_match=much")
    assert "finite" in said("ppo", "--rewards", "exact_match=nan")
    with pytest.raises(ConfigError, match="it is called lr here"):
        language.train("m", [], "ppo", learning_rate=1e-3)
    with pytest.raises(ConfigError, match="did you mean max_tokens"):
        language.train("m", [], "ppo", max_token=3)
    for name in ("grpoo", "GRPO"):
        with pytest.raises(ConfigError, match="did you mean grpo"):
            language.train("m", [], name)


def test_functions_that_are_none(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward is a str, not a function; built-in ones by name: rewards=\(…,\)"):
        language.train(model, rows(), "grpo", reward="exact_match", out=tmp_path / "run")  # type: ignore[arg-type]
    wrong: Any = lambda *request: "hello"  # noqa: E731
    with pytest.raises(GenerationError, match="gave a str, not Completions"):
        language.train(model, rows(), "grpo", reward=letters, generator=wrong, out=tmp_path / "run", **ONE)


def test_a_model_is_no_run(complaint: Complaint, model: Path) -> None:
    assert "is a model, not a run's folder" in complaint("language", "chat", model, "--prompt", "a")


def test_flags_that_nobody_knows(said: Said) -> None:
    assert "'num_generations': it is called group here" in said("grpo", *MATCH, "--num-generations", 3)
    assert "did you mean max_tokens" in said("sft", "--max-token=3")
    assert "unknown setting 'group_size'" in said("grpo", *MATCH, "--group-size", 3)


def test_rewards_where_none_belong_and_none_where_one_does(said: Said, model: Path, tmp_path: Path) -> None:
    for algo in ("sft", "dpo", "reward"):
        assert f"{algo} learns from a data set and takes no reward" in said(algo, *MATCH)
        assert "takes no reward" in said(algo, "--reward-model", model)
    assert "need a reward" in said("ppo")
    assert "has no config.json" in said("ppo", "--reward-model", tmp_path)
    assert "does not exist" in said("ppo", "--reward-model", "nowhere")
    with pytest.raises(ConfigError, match="takes no reward"):
        language.train(model, rows(), "sft", reward=letters, out=tmp_path / "run", **ONE)


def test_a_reward_model_that_is_none(said: Said, finished: Finished, model: Path) -> None:
    assert "no run of `proximo language reward`" in said("ppo", "--reward-model", finished("sft").folder)
    assert "'algo' is missing" in said("ppo", "--reward-model", model)


def test_settings_that_do_not_fit_each_other(said: Said, model: Path) -> None:
    assert "critic" in said("ppo", *MATCH, "--critic", "none")
    assert "critic_model" in said("ppo", *MATCH, "--critic-model", model)
    assert "minibatches" in said("ppo", *MATCH, "--minibatches", 5)
    assert "device is cuda" in said("ppo", *MATCH, "--device", "cuda") or torch.cuda.is_available()
    assert "pack is for texts" in said("dpo", "--pack", 20)
    assert "critic is shared, but grpo has none" in said("grpo", *MATCH, "--critic", "shared")
    assert "compares two" in said("asymmetric_ppo", *MATCH, "--critic", "shared")
    assert "takes no reward" in said("dpo", "--missing-eos", -1)


class Failing:
    """A reward that does something else at its third call of a kind."""

    def __init__(self, what: Callable[[int], Any], at: int = 3) -> None:
        self.what, self.at, self.calls = what, at, 0

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        self.calls += 1
        return self.what(len(prompts)) if self.calls >= self.at else letters(prompts, completions)


def raising(count: int) -> list[float]:
    raise RuntimeError("the judge is out")


FAILURES: dict[str, Callable[[int], Any]] = {
    "raised RuntimeError: the judge is out": raising,
    "returned nan, not a finite number": lambda count: [math.nan] * count,
    "returned 1 scores for": lambda count: [0.5],
    "returned a NoneType": lambda count: None,
    "not a finite number": lambda count: ["good"] * count,
}


@pytest.mark.parametrize("text", FAILURES)
def test_a_reward_that_fails_loses_nothing(text: str, finished: Finished, train: Train, tmp_path: Path) -> None:
    """In the third update: the first two are saved, and the run goes on as if nothing had been."""
    with pytest.raises(RewardError, match=text) as caught:
        train("grpo", tmp_path / "run", reward=Failing(FAILURES[text]))
    assert str(caught.value).isprintable()
    assert [path.name for path in all_of(tmp_path / "run")] == ["000000000000", "000000000002"]
    run = language.resume(tmp_path / "run", reward=letters, quiet=True)
    assert run.finished
    assert_same_run(finished("grpo").folder, tmp_path / "run")


def test_a_reward_that_fails_off_the_schedule(finished: Finished, train: Train, tmp_path: Path) -> None:
    """In the fourth update, after the evaluation of the third: no checkpoint is due there, and one is written."""
    with pytest.raises(RewardError):
        train("grpo", tmp_path / "run", reward=Failing(raising, 5))
    assert [path.name for path in all_of(tmp_path / "run")][-1] == "000000000003"
    language.resume(tmp_path / "run", reward=letters, quiet=True)
    last = [all_of(run)[-1] / "model.safetensors" for run in (tmp_path / "run", finished("grpo").folder)]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_memory_that_ends_loses_nothing(
    finished: Finished, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, batch: Any, progress: float) -> Any:
        if progress > 0.3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return step(self, batch, progress)

    step = GRPO.step
    monkeypatch.setattr(GRPO, "step", full)
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 2 GiB.*--micro-batch"):
        train("grpo", tmp_path / "run")
    monkeypatch.setattr(GRPO, "step", step)
    language.resume(tmp_path / "run", reward=letters, quiet=True)
    assert_same_run(finished("grpo").folder, tmp_path / "run")


def test_what_is_no_lack_of_memory_is_not_called_so() -> None:
    with pytest.raises(OutOfMemory, match="DefaultCPUAllocator"), memory_told():
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught, memory_told():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(caught.value, OutOfMemory)


def test_texts_longer_than_their_rows(said: Said, train: Train, tmp_path: Path) -> None:
    rows = [dict(prompt="a", completion="b " * (30 if i % 5 == 0 else 3)) for i in range(20)]
    data = written(tmp_path / "x.jsonl", rows)
    line = said("sft", "--pack", 16, "--max-tokens", 60, data=data)
    assert "texts are longer than the rows of 16 tokens that they are packed into" in line
    run = train("sft", tmp_path / "run", data=data, pack=16, too_long="drop", max_tokens=None, steps=1)
    assert run.finished


def test_another_reward_model(train: Train, tmp_path: Path, complaint: Complaint) -> None:
    few: dict[str, Any] = dict(steps=1, eval_every=0)
    judge = train("reward", tmp_path / "judge", **few)
    run = train("ppo", tmp_path / "run", reward=None, reward_model=str(judge.folder), **few)
    language.resume(judge.folder, steps=2, quiet=True)
    assert "not the reward model that this run began with" in complaint("resume", run.folder, "--steps", 2)


def test_completions_that_are_empty(train: Train, tmp_path: Path, model: Path) -> None:
    """A model that ends at once: everything is an EOS, and an EOS is a token."""
    from safetensors.torch import load_file, save_file

    silent = Path(shutil.copytree(model, tmp_path / "silent"))
    found = load_file(silent / "model.safetensors")
    found["lm_head.weight"][2] = 0
    found["lm_head.weight"] *= 1000
    found["model.norm.weight"] *= 0
    save_file(found, silent / "model.safetensors", {"format": "pt"})
    run = train("grpo", tmp_path / "run", model=silent, max_tokens=1)
    assert run.finished


def test_other_data_or_another_model(train: Train, tmp_path: Path, model: Path, complaint: Complaint) -> None:
    mine = Path(shutil.copytree(model, tmp_path / "mine"))
    examples = written(tmp_path / "x.jsonl", rows(30))
    run = train("sft", tmp_path / "run", model=mine, data=examples, steps=2)
    written(examples, rows(29))
    assert "examples differ" in complaint("resume", run.folder, "--steps", 4)
    with pytest.raises(CheckpointError, match="examples differ"):
        language.resume(run.folder, data=rows(31), steps=4)
    written(examples, rows(30))
    tiny.llama(seed=5).save_pretrained(mine)
    assert "its weights differ" in complaint("resume", run.folder, "--steps", 4)
    shutil.rmtree(mine)
    assert "is no folder" in complaint("resume", run.folder, "--steps", 4)
    shutil.copytree(model, mine)
    assert language.resume(run.folder, steps=4, quiet=True).step == 4


def test_what_came_from_python_is_given_again(finished: Finished, complaint: Complaint) -> None:
    line = complaint("resume", finished("grpo").folder, "--steps", 9)
    assert "the reward of this run came from Python" in line
    assert "reward" in complaint("language", "eval", finished("grpo").folder)


def test_verbs_of_the_other_kind(finished: Finished, complaint: Complaint, trained: Path, tmp_path: Path) -> None:
    run = finished("sft").folder
    for words in (["eval", run], ["play", run, "--video", tmp_path / "x.mp4"], ["export", run, "--onnx", "x.onnx"]):
        assert "is a run of a language model" in complaint(*words)
    for words in (["language", "eval", trained], ["language", "chat", trained, "--prompt", "a"]):
        assert "is a run in an environment" in complaint(*words)
    assert "takes no file" in complaint("train", "--config", run / "config.json")
    assert "holds a reward model" in complaint("language", "chat", finished("reward").folder, "--prompt", "a")
    assert "does not exist" in complaint("language", "chat", tmp_path / "none", "--prompt", "a")
    assert "learned from a data set" in complaint("language", "eval", run, "--against", run)
    assert "jobs" in complaint("resume", run, "--jobs", 2)


def test_a_folder_that_is_taken(finished: Finished, complaint: Complaint, model: Path, data: Path) -> None:
    words = ["--model", model, "--data", data, "--out", finished("sft").folder, *FEW]
    assert "is not empty: `proximo resume" in complaint("language", "sft", *words)


def test_a_run_that_is_complete(finished: Finished) -> None:
    with pytest.raises(RunFolderError, match="is complete"):
        language.resume(finished("sft").folder)
