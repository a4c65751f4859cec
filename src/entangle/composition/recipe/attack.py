"""How models are attacked: what a recipe says of it."""

from __future__ import annotations

from dataclasses import dataclass

from entangle.errors import EntangleError


@dataclass(frozen=True)
class Attack:
    """How models are attacked: see `entangle.evaluation.language.gcg`.

    Attributes:
        prompts: How many of the measurement's prompts, drawn with its seed.
        steps: Of the search for each.
        suffix: Tokens that are written after the prompt.
        width: Candidates per step.
        top_k: Tokens per place to draw them from.
        alphas: Strengths of ITI to attack under, besides none; without any, the measurement's largest.
        targets: Texts that the model is to say, in turn; without any, found by `found_targets`.
        target_words: Words of those that are found.

    Example:
        >>> attack = en.composition.Attack(prompts=8, steps=25)
        >>> attack.suffix, attack.width  # tokens of the suffix, and candidates per step
        (10, 64)
    """

    prompts: int = 20
    steps: int = 50
    suffix: int = 10
    width: int = 64
    top_k: int = 64
    alphas: tuple[float, ...] = ()
    targets: tuple[str, ...] = ()
    target_words: int = 4

    def __post_init__(self) -> None:
        for name, least in (("prompts", 2), ("steps", 1), ("suffix", 1), ("width", 1), ("top_k", 1)):
            if getattr(self, name) < least:
                raise EntangleError(f"{name} of an attack is at least {least}, not {getattr(self, name)}")
        if self.target_words < 1 or not all(target.strip() for target in self.targets):
            raise EntangleError("the targets of an attack have a word at least, each")
        if not all(0 < alpha < float("inf") for alpha in self.alphas):
            raise EntangleError(f"alphas of an attack are positive numbers, not {list(self.alphas)}")
