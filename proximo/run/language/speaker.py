"""A language model that was trained, ready to complete texts or to judge them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from proximo.errors import ConfigError
from proximo.models.language.policy import LanguagePolicy, in_pieces
from proximo.models.language.reward import RewardModel
from proximo.preferences import last_live
from proximo.run.language.material import Words
from proximo.run.language.plan import SAMPLED
from proximo.run.seeding import borrowed_generators, seed_all
from proximo.sources.generation import Generator
from proximo.sources.sampling import Sampling
from proximo.sources.text.examples import Example, ids
from proximo.sources.text.formats import rendered
from proximo.sources.text.padding import completions, left

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
TOGETHER = 64  # prompts completed, or texts judged, side by side


class Speaker:
    """A policy with its words, and the examples that it did not learn from."""

    def __init__(
        self,
        policy: LanguagePolicy,
        words: Words,
        generator: Generator,
        longest: int | None = None,
        held: Sequence[Example] = (),
    ) -> None:
        """`longest` is how long its completions were, in tokens, where it learned from some of its own."""
        self.policy, self.words, self.generator, self.longest, self.held = policy, words, generator, longest, held

    def complete(
        self,
        prompts: Sequence[str | Sequence[Message]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """A completion of each prompt; the most likely tokens where the temperature is 0. The seed decides.

        A prompt is a text, or a conversation: messages, which the tokenizer's chat template writes. `max_tokens` is by
        default as while it learned, or 128, and no more than the context leaves.
        """
        found = list[str]()
        with borrowed_generators():
            seed_all(seed)
            for i in range(0, len(prompts), TOGETHER):
                tokens = [self.tokens(prompt) for prompt in prompts[i : i + TOGETHER]]
                most = max_tokens or max(1, min(self.longest or SAMPLED, self.room(max(map(len, tokens)))))
                sampling = Sampling(most, temperature, eos=(self.words.eos,), pad=self.words.pad)
                rows = {name: x.to(self.policy.device) for name, x in left(tokens, self.words.pad).items()}
                with self.policy.computing():
                    made = self.generator(self.policy.model, rows["token"], rows["live"], sampling)
                lanes = zip(made.token.T, made.mask.T, strict=True)
                found += [self.words.decode(token[live].tolist()) for token, live in lanes]
        return found

    def room(self, prompt: int) -> int:
        """Tokens that the model's context leaves after a prompt of so many."""
        context = getattr(self.policy.model.config, "max_position_embeddings", None)
        return sys.maxsize if context is None else context - prompt

    def tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt's token ids."""
        text = prompt if isinstance(prompt, str) else rendered(self.words.tokenizer, prompt)
        found = self.words.tokenizer(text, add_special_tokens=text is prompt)["input_ids"]
        found = found[:-1] if found[-1:] == [self.words.eos] else found
        if not found:
            raise ConfigError("the prompt is empty, and the tokenizer has no BOS token to begin with")
        return found


class ModelReward:
    """A reward model as a reward of completions."""

    def __init__(self, model: RewardModel, words: Words, theirs: Any = None) -> None:
        """`theirs` is the tokenizer of the policy: where it is the same, tokens need not become text and come back."""
        self.model, self.words = model, words
        self.same = theirs is not None and theirs.get_vocab() == words.tokenizer.get_vocab()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        prompt_ids: Sequence[Sequence[int]] = (),
        completion_ids: Sequence[Sequence[int]] = (),
        ended: Sequence[bool] = (),
        **columns: list[Any],
    ) -> list[float]:
        """The rewards; without `ended`, of completions that came to their end."""
        ended, same = ended or [True] * len(prompts), self.same and prompt_ids and completion_ids
        asked = prompt_ids if same else [self.words.tokenizer(prompt)["input_ids"] for prompt in prompts]
        answers = completion_ids if same else [self.answer(*one) for one in zip(completions, ended, strict=True)]
        found = list[float]()
        for i in range(0, len(asked), TOGETHER):
            found += self.scores(asked[i : i + TOGETHER], answers[i : i + TOGETHER])
        return found

    def answer(self, text: str, ended: bool) -> list[int]:
        tokens = self.words.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*tokens, self.words.eos] if ended or not tokens else tokens

    def scores(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
        batch = completions([ids(*each) for each in prompts], [ids(*each) for each in answers], self.words.pad)
        batch = batch.to(self.model.device)
        value = in_pieces(batch, None, lambda part: self.model.evaluate(part).value)
        return last_live(value, batch.mask).tolist()
