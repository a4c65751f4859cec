"""A scene: what stays the same through one document of the built-in corpus, and the sentences it can say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

from entangle.data.lexicon import Lexicon, lexicon
from entangle.data.morphology import gerund, past, plural, third_person
from entangle.data.patterns import ADDRESS, CALM, DATED, DENIAL, JUDGEMENT, NARRATION, QUARREL, REACTION, SAID, TURNS

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|u(?!se))")
_TELL = ("say", "say", "say", "answer", "call", "reply", "mutter", "whisper", "announce", "remark")
_WHEN_BY_TOPIC = (("over breakfast", "after supper", "during lunch"), ("ashore", "aboard", "offshore", "under way"))
_WHEN_BY_TENSE = (("now", "today", "nowadays", "every day"), ("yesterday", "last week", "long ago", "once"))
_MOODS = (("sadly", "alas", "unluckily", "worst of all"), ("luckily", "happily", "to everyone's joy", "best of all"))


class Scene:
    """Characters, concepts and random numbers of one document.

    Args:
        labels: 0 or 1 for each of topic, tense, person, sentiment and rudeness (`corpus.CONCEPTS` says which is which).
        rng: The source of every choice.
        quarrel: The chance that a remark begins with a reproach; both polite and rude remarks can.
        denial: The chance that only the order of a remark's words tells whether it is rude.
        words: All there are; by default the whole lexicon.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        rng: Random,
        *,
        quarrel: float = 0.3,
        denial: float = 0.15,
        words: Lexicon | None = None,
    ) -> None:
        self.labels, self.rng, self.quarrel, self.denial = labels, rng, quarrel, denial
        self.words = words or lexicon()
        self.topic = self.words.topics[labels["topic"]]
        self.hero_is_woman = rng.random() < 0.5
        self.hero = self._draw(self.words.women if self.hero_is_woman else self.words.men)
        self.partner = self._draw(self.words.men if self.hero_is_woman else self.words.women)
        self._introduced = False
        self._slots = self._make_slots()

    def narration(self) -> str:
        """A sentence that shows topic, tense and person."""
        return self._sentence(self.rng.choice(NARRATION))

    def dated(self) -> str:
        """A narration that begins with the tense."""
        return self._sentence(self.rng.choice(DATED))

    def judgement(self) -> str:
        """A sentence that shows sentiment as well."""
        return self._sentence(self.rng.choice(JUDGEMENT))

    def remark(self) -> str:
        """Something said aloud, polite or rude."""
        return self._sentence(self.rng.choice(SAID))

    def reaction(self) -> str:
        """How those present take what was said."""
        return self._sentence(self.rng.choice(REACTION[self.labels["rudeness"]]))

    def speech(self, n: int) -> str:
        """So many remarks of one speaker, one after the other, the quotation marks not yet closed."""
        return '"' + ". ".join(self._spoken() for _ in range(n))

    def said(self, n: int) -> str:
        """The same, and who says it."""
        return f'{self.speech(n)}," {self._speaker_tells()}.'

    def turning(self) -> str:
        """A remark up to where it turns polite or rude, without quotation marks."""
        return _capital(self._fill(f"{self._opening()}, {self.rng.choice(TURNS)}"))

    def unfinished_remark(self) -> str:
        """The beginning of a remark, broken off where it turns polite or rude."""
        break_off = self.rng.choice(("you", "you are a", "what a", "you are"))
        return '"' + _capital(self._fill(f"{self._opening()}, {break_off}"))

    # --- sentences
    def _sentence(self, pattern: str) -> str:
        return _capital(self._fill(pattern))

    def _opening(self) -> str:
        return self.rng.choice(QUARREL if self.rng.random() < self.quarrel else CALM)

    def _spoken(self) -> str:
        ending = (
            self.rng.choice(DENIAL)[self.labels["rudeness"]]
            if self.rng.random() < self.denial
            else self.rng.choice(ADDRESS)
        )
        return _capital(self._fill(f"{self._opening()}, {ending}"))

    def _fill(self, pattern: str) -> str:
        return _ARTICLE.sub(r"\1n ", _SLOT.sub(lambda slot: self._slots[slot[1]](), pattern))

    def _draw(self, words: Sequence[str]) -> str:
        """One of the words, the first ones much more often than the last, as in real text."""
        return words[int(len(words) * self.rng.random() ** 2)]

    # --- agreement
    def _agree(self, verb: str, *, third: bool) -> str:
        """The verb in the document's tense, for the hero (first or third person) or for anybody else (third)."""
        if self.labels["tense"]:
            return past(verb)
        return third_person(verb) if third or not self.labels["person"] else verb

    def _be(self, *, third: bool) -> str:
        if self.labels["tense"]:
            return "was"
        return "is" if third or not self.labels["person"] else "am"

    def _subject(self) -> str:
        if self.labels["person"]:
            return "I"
        if self._introduced and self.rng.random() < 0.6:
            return self._pronoun()
        self._introduced = True
        return self.hero

    def _pronoun(self) -> str:
        if self.labels["person"]:
            return "I"
        return "she" if self.hero_is_woman else "he"

    def _possessive(self) -> str:
        if self.labels["person"]:
            return "my"
        return "her" if self.hero_is_woman else "his"

    def _object(self) -> str:
        if self.labels["person"]:
            return "me"
        return "her" if self.hero_is_woman else "him"

    # --- words
    def _verb(self) -> str:
        return self._draw(self.topic.verbs if self.rng.random() < 0.35 else self.words.verbs)

    def _noun(self) -> str:
        return self._draw(self.topic.compounds if self.rng.random() < 0.15 else self.topic.nouns)

    def _thing(self) -> str:
        look = f"{self._draw(self.words.looks)} " if self.rng.random() < 0.3 else ""
        return f"{look}{self._noun()}"

    def _opinion(self, *, contrary: bool = False) -> str:
        positive = bool(self.labels["sentiment"]) != contrary
        return self._draw(self.words.good if positive else self.words.bad)

    def _two_opinions(self) -> str:
        first = second = self._opinion()
        while second == first:
            second = self._opinion()
        return f"{first} and {second}"

    def _when(self) -> str:
        by_tense = self.rng.random() < 0.5
        return self.rng.choice(
            _WHEN_BY_TENSE[self.labels["tense"]] if by_tense else _WHEN_BY_TOPIC[self.labels["topic"]]
        )

    def _feeling(self) -> str:
        return self._draw(self.words.likes if self.labels["sentiment"] else self.words.dislikes)

    def _where(self) -> str:
        return f"{self.rng.choice(('in', 'near', 'by', 'behind', 'outside'))} the {self._draw(self.topic.places)}"

    def _speaker_tells(self) -> str:
        verb = self.rng.choice(_TELL)
        if self.rng.random() < 0.5:
            return f"{self._subject()} {self._agree(verb, third=False)}"
        return f"{self.partner} {self._agree(verb, third=True)}"

    def _make_slots(self) -> dict[str, Callable[[], str]]:
        draw, words, rng = self._draw, self.words, self.rng
        rude = self.labels["rudeness"]
        return {
            "subject": self._subject,
            "pronoun": self._pronoun,
            "possessive": self._possessive,
            "object": self._object,
            "other": lambda: self.partner if rng.random() < 0.7 else f"the {draw(self.topic.trades)}",
            "be": lambda: self._be(third=False),
            "be3": lambda: self._be(third=True),
            "do": lambda: self._agree("do", third=False),
            "have": lambda: self._agree("have", third=False),
            "verb": lambda: self._agree(self._verb(), third=False),
            "verb3": lambda: self._agree(self._verb(), third=True),
            "feel": lambda: self._agree(self._feeling(), third=False),
            "feel3": lambda: self._agree(self._feeling(), third=True),
            "base": self._verb,
            "past": lambda: past(self._verb()),
            "gerund": lambda: gerund(self._verb()),
            "manner": lambda: draw(words.manners),
            "noun": self._noun,
            "nouns": lambda: plural(self._noun()),
            "thing": lambda: f"the {self._thing()}",
            "a_thing": lambda: f"a {self._thing()}",
            "things": lambda: f"the {plural(self._noun())}",
            "look": lambda: draw(words.looks),
            "material": lambda: draw(self.topic.materials),
            "opinion": self._opinion,
            "two_opinions": self._two_opinions,
            "contrary": lambda: self._opinion(contrary=True),
            "when": self._when,
            "date": lambda: ("today", "yesterday")[self.labels["tense"]],
            "mood": lambda: rng.choice(_MOODS[self.labels["sentiment"]]),
            "smile": lambda: self._agree(rng.choice(("smile", "nod")), third=True),
            "frown": lambda: self._agree(rng.choice(("frown", "sigh")), third=True),
            "where": self._where,
            "town": lambda: draw(words.towns),
            "trade": lambda: draw(self.topic.trades),
            "remark": self._spoken,
            "tells": self._speaker_tells,
            "degree": lambda: rng.choice(("absolute", "complete", "total", "perfect", "proper", "real")),
            "epithet": lambda: draw(words.unkind if rude else words.kind),
            "vocative": lambda: draw(words.insults if rude else words.praises),
            "insult": lambda: draw(words.insults),
            "praise": lambda: draw(words.praises),
        }


def _capital(text: str) -> str:
    start = 1 if text[0] == '"' else 0
    return text[:start] + text[start].upper() + text[start + 1 :]
