"""Red-teaming by greedy coordinate gradient (Zou et al. 2023): a suffix that makes a model say a given text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import NotFiniteError
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.rows import accepts, context_length, encode
from entangle.models.tokens import vocabulary_size
from entangle.models.trace import evaluating

DRAWS = 20  # of a random suffix, before giving up on one that reads back as the same tokens


@dataclass(frozen=True)
class Suffix:
    """What was found for one prompt.

    Attributes:
        text: The suffix; prompt and suffix written together read back as the tokens that were optimised.
        loss: Cross-entropy of the target after prompt and suffix, nats per token.
        losses: The same for the best candidate of each step.
        started: The same for the random suffix that the search began with.
        start: That suffix.

    Example:
        >>> suffix = en.evaluation.Suffix("! !", loss=1.5, losses=(2.0, 1.5), started=2.5, start="a b")
        >>> suffix.started - suffix.loss  # nats per token of the target that the search won
        1.0
    """

    text: str
    loss: float
    losses: tuple[float, ...]
    started: float
    start: str


def gcg(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    target: str,
    *,
    length: int = 10,
    steps: int = 50,
    width: int = 64,
    top_k: int = 64,
    prepend_bos: bool = False,
    seed: int = 0,
) -> Suffix:
    """Search for tokens to write after a prompt so that a model goes on with the target (Algorithm 1).

    At every step the gradient of the target's cross-entropy names, for each place of the suffix, the `top_k` tokens
    whose exchange lowers it most to first order; of `width` single exchanges drawn among them, the best becomes the
    suffix, better than the one before or not. Only tokens of printable ASCII are used, and only suffixes that are read
    back from the text as the same tokens.

    Args:
        model: A causal language model; hooks that are on it act here too, so that a steered model is attacked as such.
        tokenizer: Its tokenizer.
        prompt: What the suffix is written after.
        target: What the model is to say after it.
        length: Tokens of the suffix.
        steps: Steps of the search; 0 gives the random suffix that it begins with.
        width: Candidates per step.
        top_k: Tokens per place to draw them from.
        prepend_bos: Begin the prompt with the beginning-of-sequence token where the tokenizer does not.
        seed: Decides, with prompt and target, the first suffix and all candidates.

    Returns:
        The best suffix of all steps.

    Raises:
        EntangleError: A prompt or target that is empty or no string, such as a conversation; numbers out of range, more
            tokens than the context holds, a model without input embeddings, no suffix that can be read back, or logits
            that are not finite.

    Example:
        >>> few = {"length": 3, "steps": 2, "width": 4, "top_k": 8}
        >>> suffix = en.evaluation.gcg(model, tokenizer, prompts[0], " turnip", **few)
        >>> len(suffix.losses), suffix.loss <= suffix.started
        (2, True)
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    for name, value, least in (("length", length, 1), ("steps", steps, 0), ("width", width, 1), ("top_k", top_k, 1)):
        if value < least:
            raise EntangleError(f"{name} of an attack is at least {least}, not {value}")
    for name, text in (("prompt", prompt), ("target", target)):
        if not isinstance(text, str):
            raise EntangleError(
                f"an attack needs its {name} as a string, but got {type(text).__name__}: write a conversation with the "
                "tokenizer's apply_chat_template(messages, tokenize=False) up to where the suffix goes"
            )
    search = _Search(model, tokenizer, prompt, target, prepend_bos)
    search.check_room(length)
    key = hashlib.sha256(f"{seed} {prompt} {target}".encode(errors="surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8]) >> 1)
    suffix = search.random(length, generator)
    start, started = suffix, float(search.losses(suffix[None])[0])
    best, best_loss, losses = suffix, started, []
    for _ in range(steps):
        candidates = search.candidates(suffix, width, top_k, generator)
        candidate_losses = search.losses(candidates)
        place = int(candidate_losses.argmin())
        suffix, loss = candidates[place], float(candidate_losses[place])
        losses.append(loss)
        if loss < best_loss:
            best, best_loss = suffix, loss
    return Suffix(search.text(best), best_loss, tuple(losses), started, search.text(start))


class _Search:
    """One prompt and target: losses of suffixes, and the exchanges that promise to lower them."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, prepend_bos: bool
    ) -> None:
        embedding = model.get_input_embeddings()
        if embedding is None:
            raise EntangleError(f"{type(model).__name__} has no input embeddings, which the attack exchanges tokens in")
        self.model, self.tokenizer, self.prompt, self.prepend_bos = model, tokenizer, prompt, prepend_bos
        self.embedding = embedding
        (before,) = encode(tokenizer, [prompt], model=model, prepend_bos=prepend_bos, closed=False, what="prompt")
        self.before = torch.tensor(before, device=model.device)
        (ids,) = encode(tokenizer, [target], model=model, add_special_tokens=False, what="target")
        self.target = torch.tensor(ids, device=model.device)
        self.allowed = allowed_tokens(tokenizer, vocabulary_size(model)).to(model.device)
        self.short = {"logits_to_keep": len(ids) + 1} if accepts(model, "logits_to_keep") else {}

    def check_room(self, length: int) -> None:
        needed, context = len(self.before) + length + len(self.target), context_length(self.model, self.tokenizer)
        if needed > context:
            raise EntangleError(
                f"prompt, suffix and target make {needed} tokens, but the context holds {context}: shorten one"
            )

    def text(self, suffix: Int[Tensor, " place"]) -> str:
        return self.texts(suffix[None])[0]

    def texts(self, suffixes: Int[Tensor, "row place"]) -> list[str]:
        """Suffixes as text, decoded after the prompt: a tokenizer may drop the space that a text begins with."""
        before = self.before.tolist()
        begun, *texts = self.tokenizer.batch_decode(
            [before, *(before + suffix for suffix in suffixes.tolist())], skip_special_tokens=True
        )
        return [text.removeprefix(begun) for text in texts]

    def reads_back(self, suffixes: Int[Tensor, "row place"]) -> list[bool]:
        """Whether prompt and suffix, written as one text, are the tokens that they were made of."""
        texts = [self.prompt + text for text in self.texts(suffixes)]
        rows = encode(self.tokenizer, texts, prepend_bos=self.prepend_bos, closed=False)
        before = self.before.tolist()
        return [row == before + suffix for row, suffix in zip(rows, suffixes.tolist(), strict=True)]

    def random(self, length: int, generator: torch.Generator) -> Int[Tensor, " place"]:
        for _ in range(DRAWS):
            drawn = torch.randint(len(self.allowed), (64, length), generator=generator).to(self.allowed.device)
            suffixes: Tensor = self.allowed[drawn]
            for suffix, same in zip(suffixes, self.reads_back(suffixes), strict=True):
                if same:
                    readable: Tensor = suffix
                    return readable
        raise EntangleError(
            f"no {length} random tokens are read back from their text as the same tokens: try a shorter suffix"
        )

    @torch.no_grad()
    def losses(self, suffixes: Int[Tensor, "row place"]) -> Float[Tensor, " row"]:
        """Cross-entropy of the target after each suffix, nats per token."""
        return self._losses(suffixes)

    def _losses(self, suffixes: Int[Tensor, "row place"]) -> Float[Tensor, " row"]:
        rows = len(suffixes)
        ids = torch.cat([self.before.expand(rows, -1), suffixes, self.target.expand(rows, -1)], 1)
        with evaluating(self.model):
            logits = self.model(input_ids=ids, use_cache=False, **self.short).logits
        logits = logits[:, -len(self.target) - 1 : -1].float()
        losses: Tensor = F.cross_entropy(logits.mT, self.target.expand(rows, -1), reduction="none").mean(1)
        if not bool(losses.isfinite().all()):
            raise NotFiniteError("the attacked model's logits are not finite; a weaker edit or a wider dtype may help")
        return losses

    def slopes(self, suffix: Int[Tensor, " place"]) -> Float[Tensor, "place token"]:
        """What exchanging the token of each place for each allowed one adds to the loss, to first order."""
        with torch.enable_grad(), _leaf(self.embedding) as seen:
            loss = self._losses(suffix[None])[0]
            (gradient,) = torch.autograd.grad(loss, seen())
        with torch.no_grad():
            vectors = self.embedding(self.allowed)  # through the module, which may scale them
        places = gradient[0, len(self.before) : len(self.before) + len(suffix)]
        slopes: Tensor = places.float() @ vectors.float().T
        return slopes

    def candidates(
        self, suffix: Int[Tensor, " place"], width: int, top_k: int, generator: torch.Generator
    ) -> Int[Tensor, "row place"]:
        """Single exchanges that can be read back; the suffix as it is where none can."""
        best = self.slopes(suffix).topk(min(top_k, len(self.allowed)), largest=False).indices
        places = torch.randint(len(suffix), (width,), generator=generator)
        ranks = torch.randint(best.shape[1], (width,), generator=generator)
        rows = suffix.repeat(width, 1)
        rows[torch.arange(width), places] = self.allowed[best[places, ranks]]
        kept = rows[torch.tensor(self.reads_back(rows), device=rows.device)]
        return kept if len(kept) else suffix[None]


@contextmanager
def _leaf(embedding: torch.nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Make what an embedding returns a leaf to differentiate by, whatever the model does with it later."""
    seen: list[Tensor] = []

    def cut(_: torch.nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = embedding.register_forward_hook(cut)
    try:
        yield lambda: seen[0]
    finally:
        handle.remove()


def allowed_tokens(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> Int[Tensor, " token"]:
    """Tokens of printable ASCII, without special ones and those beyond a model's vocabulary of this size.

    Raises:
        EntangleError: Where the tokenizer has none.
    """
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token] for token in range(min(len(tokenizer), size or len(tokenizer)))])
    allowed = [i for i, text in enumerate(texts) if i not in special and text.isascii() and text.isprintable() and text]
    if not allowed:
        raise EntangleError("this tokenizer has no token of printable ASCII to make a suffix of")
    return torch.tensor(allowed)
