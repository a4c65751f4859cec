"""A local language model as a judge: a question with fixed answers, and the probability of the one that counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from transformers import PreTrainedTokenizerBase

from entangle.activations import read_conversations
from entangle.data import AnyPrompt, in_order, prompt_key, read_labels, same_index, texts_of
from entangle.errors import EntangleError
from entangle.evaluation.language.reading import batches
from entangle.evaluation.language.subject import Subject, check_finite
from entangle.evaluation.scoring.calibrating import CLOSEST, KINDS, Calibration, Kind, apart
from entangle.evaluation.scoring.pairs import asked
from entangle.evaluation.scoring.scorers import beside_texts
from entangle.metrics import auroc_interval
from entangle.models import LOGITS, UNLIMITED, context_length, encode, own_tokenizer, underlying
from entangle.models.fingerprint import fingerprint, tokenizer_fingerprint
from entangle.probes import expected_calibration_error
from entangle.storage.digest import digest

OF_TEXT = "{question}\n\nText: {text}\n\nReply with one word, {options}."
OF_ANSWER = "{question}\n\nPrompt: {prompt}\n\nAnswer: {text}\n\nReply with one word, {options}."
REPLY = "\nReply:"  # where the judge is to go on, without a chat template
LEAST = 0.7
MARK = "marked"


class JudgeScorer:
    """The probability that a causal language model gives to one of a question's fixed answers. Nothing is sampled.

    The model reads the question, the text, the prompt that it answers where there is one, and the answers to choose
    from; the score is the softmax over the logits of the answers' tokens, of the one that counts. It is asked twice,
    with the answers in both orders, and the two probabilities are averaged: models prefer what comes first, or last
    (Zheng et al. 2023, Wang et al. 2023).

    A judge is believed after `fit` has compared it with labels on rows apart; one that was not is refused. What it was
    compared on is what it is asked: fitted without prompts it reads the texts alone, whatever they answer; fitted with
    prompts it needs them.

    Args:
        model: A causal language model, best an instructed one.
        tokenizer: Its tokenizer; its chat template is used if it has one.
        question: What is asked of every text.
        answers: The answers to choose from; each must be one token after the prompt.
        counts: The answer whose probability is the score; by default the first.
        template: What is asked, with `{question}`, `{text}`, `{options}` and perhaps `{prompt}`; by default `OF_ANSWER`
            where prompts are given, else `OF_TEXT`.
        both_orders: Whether to ask in both orders of the answers.
        name: What tables call it.
        unchecked: Believe it without `fit`.
        chat_template_kwargs: For the chat template, such as `{"enable_thinking": False}`.
        batch_tokens: Tokens in one batch, padding included.

    Raises:
        EntangleError: Fewer than two answers, answers that start alike or are of several tokens, one that counts but is
            no answer, or a template without the text or the options.

    Example:
        >>> judge = en.JudgeScorer(model, tokenizer, "Is it rude?", answers=("gem", "turnip"), counts="turnip")
        >>> judge(texts[:2])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: ... was never compared with labels: call fit(texts, labels) and ...
        >>> judged = judge.fit(texts, labels, least=0)  # a model so small answers by chance
        >>> judged.report["n_fit"], judged.report["n_held_out"], judged(texts[:2]).shape
        (48, 48, (2,))
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        question: str,
        *,
        answers: Sequence[str] = ("Yes", "No"),
        counts: str | None = None,
        template: str | None = None,
        both_orders: bool = True,
        name: str | None = None,
        unchecked: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        self.model, self.tokenizer = underlying(model), own_tokenizer(model, tokenizer)
        self.question, self.answers, self.template = question, tuple(in_order(answers, "answer")), template
        self.counts = self.answers[0] if counts is None and self.answers else str(counts)
        self.both_orders, self.unchecked, self.batch_tokens = both_orders, unchecked, batch_tokens
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.calibration: Calibration | None = None
        self.with_prompts: bool | None = None  # as it was compared with labels
        self.report: dict[str, Any] = {}
        self._check()
        self.tokens = [self._token(answer) for answer in self.answers]
        self._given_name = name

    @property
    def name(self) -> str:
        """What it was called, or `judge-` and a hash of model, question, answers and calibration."""
        return self._given_name or f"judge-{digest(self.content())[:8]}"

    def content(self) -> Any:
        """What decides its scores, for caches; not the report of how well it does."""
        how = self.question, self.answers, self.counts, self.template, self.both_orders, self.chat_template_kwargs
        known = fingerprint(self.model), tokenizer_fingerprint(self.tokenizer), how, self.calibration
        return known if self.with_prompts is None else (*known, self.with_prompts)

    def __call__(self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None) -> Float[np.ndarray, " text"]:
        """The calibrated probability of the answer that counts, for each text.

        Raises:
            EntangleError: It was never compared with labels, or with prompts and there are none; or a text that is too
                long for the judge's context.
        """
        if self.calibration is None and not self.unchecked:
            raise EntangleError(
                f"{self.name} was never compared with labels: call fit(texts, labels) and use what it returns, or pass "
                "unchecked=True to believe it as it is"
            )
        if self.with_prompts and prompts is None:
            raise EntangleError(
                f"{self.name} was compared with labels on answers beside their prompts, but no prompts arrived: pass "
                "prompts=, one a text, or fit it without"
            )
        raw = self.ask(texts, None if self.with_prompts is False else prompts)[0].mean(-1)
        return raw if self.calibration is None else self.calibration(raw)

    def fit(
        self,
        texts: Sequence[str],
        labels: Any,
        *,
        prompts: Sequence[AnyPrompt] | None = None,
        positive: Any = None,
        calibration: Kind = "platt",
        held_out: float = 0.5,
        least: float = LEAST,
        seed: int = 0,
    ) -> JudgeScorer:
        """The same judge, calibrated on some labelled texts and compared with the labels of others.

        Args:
            texts: Texts.
            labels: Two classes, one label per text: 1 where the answer that counts is right.
            prompts: What each text answers, if that is judged too.
            positive: The label that counts as 1, all others as 0.
            calibration: "platt", a sigmoid of the log-odds, or "isotonic", steps, which need more texts.
            held_out: Share of the texts, stratified, that only report; copies of a text are never on both sides.
            least: The AUROC on the texts held out below which the judge is refused; 0 takes any.
            seed: Seed of the split.

        Returns:
            A judge with `.calibration` and `.report`: `auroc`, with its interval, and `brier` and `ece` (expected
            calibration error, less chance) before (`_raw`) and after calibration, all on the texts held out;
            `order_gap` and `order_flips`, the mean difference between the probabilities under both orders and the
            share of texts that change sides; `mass`, the mean probability of all the answers together among all tokens;
            `n_fit`, `n_held_out`, `calibration`, `positive`, `seed`.

        Raises:
            EntangleError: Labels of other than two classes, too few of one, or an AUROC below `least`.
        """
        same_index(texts=texts, labels=labels)
        texts = texts_of(texts)
        read = read_labels(labels, len(texts), positive=positive, two=True)
        y, beside = read.codes, beside_texts(texts, prompts)
        if calibration not in KINDS:
            raise EntangleError(f"calibration must be one of {', '.join(map(repr, KINDS))}; got {calibration!r}")
        known = texts if beside is None else list(zip(texts, map(prompt_key, beside), strict=True))
        fit, rest = apart(known, y, held_out, seed=seed, least=2)
        if not 0 <= least <= 1:
            raise EntangleError(f"least is an AUROC from 0 to 1, below which the judge is refused; got {least}")
        by_order, mass = self.ask(texts, prompts)
        raw = by_order.mean(-1)
        judged = copy.copy(self)
        judged.with_prompts = prompts is not None
        judged.calibration = Calibration.fit(calibration, raw[fit], y[fit])
        judged.report = {
            "n_fit": len(fit),
            "n_held_out": len(rest),
            **auroc_interval(raw[rest], y[rest]).columns("auroc"),
            **_calibrated(raw[rest], y[rest], "_raw"),
            **_calibrated(judged.calibration(raw[rest]), y[rest]),
            "order_gap": float(np.ptp(by_order, axis=-1).mean()),
            "order_flips": float(np.mean((by_order > 0.5).any(-1) & (by_order <= 0.5).any(-1))),
            "mass": float(mass.mean()),
            "calibration": calibration,
            "positive": read.names[1],
            "seed": seed,
        }
        area, low, high = (judged.report[f"auroc{end}"] for end in ("", "_low", "_high"))
        if area < least:
            raise EntangleError(
                f"{self.name} tells the labels apart with AUROC {area:.2f} [{low:.2f}, {high:.2f}] on {len(rest)} "
                f"texts held out, but {least:g} is asked for: give another model or question, or pass least={area:.2f}"
            )
        return judged

    @torch.no_grad()
    def ask(
        self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None
    ) -> tuple[Float[np.ndarray, "text order"], Float[np.ndarray, " text"]]:
        """What the model says, before calibration.

        Args:
            texts: Texts to judge.
            prompts: What each answers.

        Returns:
            The probability of the answer that counts, among the answers, for each order of them; and the probability of
            all the answers together among all tokens.

        Raises:
            EntangleError: A text that with the question is longer than the judge's context.
        """
        texts = texts_of(texts)
        beside = beside_texts(texts, prompts)
        if beside is None and "{prompt}" in (self.template or ""):
            raise EntangleError(
                f"{self.name}'s template has a place for the prompt, but no prompts arrived: pass prompts=, one a text"
            )
        orders = [self.answers, self.answers[::-1]] if self.both_orders else [self.answers]
        contents = [
            self._content(text, None if beside is None else beside[i], order)
            for i, text in enumerate(texts)
            for order in orders
        ]
        rows = self._rows(self._written(contents))
        room = context_length(self.model, self.tokenizer) - 1
        for i, row in enumerate(rows):
            if len(row) > room:
                raise EntangleError(
                    f"text {i // len(orders)} with the judge's question has {len(row)} tokens, but the context leaves "
                    f"room for {room} before the answer: shorten it, or leave it out"
                )
        subject = Subject(self.model, self.tokenizer)
        logits = np.zeros((len(rows), len(self.tokens)))
        mass = np.zeros(len(rows))
        for batch in batches(rows, self.model, self.batch_tokens, LOGITS, progress=False):
            # A row with any token after it predicts what comes at its end.
            read = subject.predictions([[*rows[i], self.tokens[0]] for i in batch], [len(rows[i]) - 1 for i in batch])
            for part in read.parts(LOGITS):
                values = read.logits(part).double()
                check_finite(values)
                chosen = values[:, self.tokens]
                logits[batch[part]] = chosen.cpu().numpy()
                mass[batch[part]] = (chosen.logsumexp(-1) - values.logsumexp(-1)).exp().cpu().numpy()
        p = special.softmax(logits, axis=-1)[:, self.answers.index(self.counts)]
        return p.reshape(len(texts), len(orders)), mass.reshape(len(texts), len(orders)).mean(-1)

    def _check(self) -> None:
        if len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
            raise EntangleError(f"a judge needs two answers or more, all different; got {list(self.answers)}")
        if self.counts not in self.answers:
            raise EntangleError(f"counts={self.counts!r} is none of the answers {list(self.answers)}: name one of them")
        template = self.template
        if template is None:
            return
        try:
            template.format(question="", text="", prompt="", options="")
        except (KeyError, IndexError, ValueError, AttributeError):
            fits = False
        else:
            fits = all(field in template for field in ("{text}", "{options}"))
        if not fits:
            raise EntangleError(
                "a judge's template holds {text} and {options}, perhaps {question} and {prompt}, and nothing else in "
                f"braces but {{{{ and }}}}, which write braces; got {template!r:.80}"
            )

    def _content(self, text: str, prompt: AnyPrompt | None, order: Sequence[str]) -> str:
        """What is asked about one text."""
        template = self.template or (OF_TEXT if prompt is None else OF_ANSWER)
        *others, last = order
        question = "" if prompt is None else asked(prompt)
        options = f"{', '.join(others)} or {last}"
        return template.format(question=self.question, text=text, prompt=question, options=options)

    @property
    def _chats(self) -> bool:
        return bool(self.chat_template_kwargs.get("chat_template") or getattr(self.tokenizer, "chat_template", None))

    def _written(self, contents: Sequence[str]) -> list[str]:
        """What is asked, as the model reads it, up to where it answers."""
        if not self._chats:
            return [content + REPLY for content in contents]
        arguments = {"add_generation_prompt": True, **self.chat_template_kwargs}
        conversations = [[{"role": "user", "content": content}] for content in contents]
        return read_conversations(self.tokenizer, conversations, arguments).texts

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(
            self.tokenizer,
            texts,
            max_length=UNLIMITED,
            add_special_tokens=not self._chats,
            closed=False,
            what="question",
        )

    def _token(self, answer: str) -> int:
        """The one token of an answer, as the model would write it.

        Raises:
            EntangleError: It is several, or the text before it is read otherwise.
        """
        (text,) = self._written([self._content("a", None, self.answers)])
        lead = self._lead(text)
        before, *after = self._rows([text, *(text + lead + each for each in self.answers)])
        tails = {each: row[len(before) :] for each, row in zip(self.answers, after, strict=True)}
        if any(row[: len(before)] != before for row in after):
            raise EntangleError(
                f"the judge's tokenizer joins the answer {answer!r} to the text before it, so it has no token of its "
                "own: choose other answers"
            )
        tail = tails[answer]
        alike = [each for each in self.answers if each != answer and tails[each][:1] == tail[:1]]
        if alike:
            raise EntangleError(
                f"the judge's answers {answer!r} and {alike[0]!r} start with the same token, so the first token cannot "
                "tell them apart: choose answers that start differently"
            )
        if len(tail) != 1:
            raise EntangleError(
                f"the judge's answer {answer!r} is {len(tail)} tokens, but the probability of one is read: choose "
                "answers of one token each, such as Yes and No"
            )
        return int(tail[0])

    def _lead(self, text: str) -> str:
        """What stands between the prompt and an answer: the chat template's space, if it writes one."""
        if not self._chats:
            return " "
        messages = [
            {"role": "user", "content": self._content("a", None, self.answers)},
            {"role": "assistant", "content": MARK},
        ]
        rendered = read_conversations(self.tokenizer, [messages], self.chat_template_kwargs).texts[0]
        rest = rendered.removeprefix(text) if rendered.startswith(text) else ""
        lead, mark, _ = rest.partition(MARK)
        return lead if mark and not lead.strip() else ""


def _calibrated(p: Float[np.ndarray, " text"], y: np.ndarray, end: str = "") -> dict[str, float]:
    """The Brier score and the expected calibration error of probabilities."""
    log_odds = torch.from_numpy(special.logit(np.clip(p, CLOSEST, 1 - CLOSEST)))
    error = float(expected_calibration_error(log_odds, torch.from_numpy(y), 2))
    return {f"brier{end}": float(np.mean((p - y) ** 2)), f"ece{end}": error}
