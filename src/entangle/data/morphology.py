"""Regular English inflection and derivation, and names that nobody bears."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VOWELS = "aeiou"
IRREGULAR_PAST = {
    "bring": "brought",
    "build": "built",
    "buy": "bought",
    "come": "came",
    "do": "did",
    "draw": "drew",
    "find": "found",
    "forget": "forgot",
    "give": "gave",
    "go": "went",
    "hang": "hung",
    "have": "had",
    "hold": "held",
    "keep": "kept",
    "leave": "left",
    "lose": "lost",
    "make": "made",
    "run": "ran",
    "say": "said",
    "see": "saw",
    "sell": "sold",
    "send": "sent",
    "sit": "sat",
    "stand": "stood",
    "steal": "stole",
    "sweep": "swept",
    "take": "took",
    "think": "thought",
    "wake": "woke",
}
STRESSED_AT_THE_END = ("admit", "regret", "forget")
IRREGULAR_PLURAL = {"shelf": "shelves", "loaf": "loaves", "knife": "knives", "goose": "geese", "fish": "fish"}


def _doubles(verb: str) -> bool:
    """Whether the last consonant doubles before a suffix: after one short vowel that is stressed."""
    syllables = sum(letter in VOWELS for letter in verb)
    stressed = syllables == 1 or verb in STRESSED_AT_THE_END
    return stressed and len(verb) > 2 and verb[-1] not in VOWELS + "wxy" and verb[-2] in VOWELS


def third_person(verb: str) -> str:
    """The present-tense form after he, she or it: `carry` -> `carries`."""
    if verb == "have":
        return "has"
    if verb[-1] == "y" and verb[-2] not in VOWELS:
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def past(verb: str) -> str:
    """The past tense: `carry` -> `carried`, `take` -> `took`."""
    if verb in IRREGULAR_PAST:
        return IRREGULAR_PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb[-1] == "y" and verb[-2] not in VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if _doubles(verb) else "") + "ed"


def gerund(verb: str) -> str:
    """The -ing form: `carry` -> `carrying`, `take` -> `taking`."""
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if _doubles(verb) else "") + "ing"


def plural(noun: str) -> str:
    """The plural: `box` -> `boxes`, `berry` -> `berries`; a compound inflects its last part."""
    for singular, irregular in IRREGULAR_PLURAL.items():
        if noun.endswith(singular):
            return noun[: -len(singular)] + irregular
    if noun[-1] == "y" and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def adverb(adjective: str) -> str:
    """The -ly adverb: `gloomy` -> `gloomily`, `gentle` -> `gently`."""
    if adjective.endswith("y"):
        return adjective[:-1] + "ily"
    if adjective.endswith("le"):
        return adjective[:-1] + "y"
    return adjective + ("ally" if adjective.endswith("ic") else "ly")


def join(first: Iterable[str], second: Sequence[str]) -> tuple[str, ...]:
    """Every compound of one part from each, shortest parts first, so that a skewed draw prefers the plain ones."""
    parts = [(a, b) for a in first for b in second if a[-1] != b[0]]
    return tuple(a + b for a, b in sorted(parts, key=lambda pair: len(pair[0]) + len(pair[1])))
