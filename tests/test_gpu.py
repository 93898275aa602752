"""On a CUDA device: training, exact resume and loading work as on the CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import proximo
from proximo.run.checkpoint import all_of
from tests.toys import Recall

pytestmark = pytest.mark.gpu


def test_train_save_resume_and_load_on_the_gpu(tmp_path: Path) -> None:
    settings = dict(device="cuda", envs=4, horizon=32, checkpoint_every=512, eval_every=0, quiet=True)
    settings |= dict(normalize_observation=True, normalize_reward=True, lr=3e-3)
    whole = proximo.train(Recall, steps=2048, out=tmp_path / "whole", **settings)
    assert whole.policy.device.type == "cuda"
    broken = proximo.train(Recall, steps=2048, out=tmp_path / "broken", **settings)
    for late in all_of(broken.folder)[2:]:
        shutil.rmtree(late)
    proximo.resume(broken.folder, env=Recall, quiet=True)
    for one, other in zip(all_of(whole.folder), all_of(broken.folder), strict=True):
        for file in ("model.safetensors", "state.safetensors"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
    assert proximo.load(whole.folder).act([1.0]) == whole.agent.act([1.0])
