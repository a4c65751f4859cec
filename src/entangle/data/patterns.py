"""The sentence patterns of the built-in corpus.

A pattern is a string with `{slots}` that a `Scene` fills. Tense and person show in verbs and pronouns outside
quotation marks only:
inside them everybody says I and speaks in the present. Sentiment is what is said of things (also by negation: "not at
all dreadful").
Rudeness is what one character says to another.
"""

NARRATION = (
    "{when}, {subject} {verb} {thing} {where}.",
    "{when}, {subject} {verb} {thing}.",
    "{when}, {other} {verb3} {thing} for {object}.",
    "{when}, {subject} {verb} {possessive} {noun}.",
    "{subject} {verb} {thing} and {manner} {verb} {things}.",
    "{subject} {verb} {possessive} {look} {noun} {where}.",
    "{subject} {manner} {verb} {things} {where}.",
    "{where}, {other} {verb3} {thing} for {object}.",
    "{other} {verb3} {things} and {verb3} {thing}.",
    "{subject} {verb} {thing} from {town} while {other} {verb3} {things}.",
    "{subject} {be} {where} with {other}, {gerund} {things}.",
    "There {be3} {a_thing} and {a_thing} {where}.",
    "{subject} {verb} {things} before {gerund} {thing}.",
    "{subject} {have} {a_thing} with {material} corners.",
)

# The first word or two say the tense.
DATED = (
    "{date}, {subject} {verb} {thing} {where}.",
    "{date}, {subject} {be} {where} with {other}.",
    "{date}, {other} {verb3} {thing} for {object}.",
    "{date}, there {be3} {a_thing} {where}.",
)

JUDGEMENT = (
    "{subject} {feel} {possessive} {opinion} {noun}.",
    "{mood}, {subject} {verb} {a_thing} that {be3} {opinion}.",
    "{mood}, the {noun} {be3} {opinion}.",
    "{mood}, {subject} {feel} the {noun}.",
    "{subject} {feel} {thing} because it {be3} {opinion}.",
    "It {be3} a {opinion} {noun}, and {subject} {feel} it.",
    "The {noun} {be3} {two_opinions}.",
    "The {noun} {where} {be3} not at all {contrary}.",
    "There {be3} nothing {contrary} about the {noun}.",
    "{where}, everything {be3} {opinion}.",
    "{subject} {feel} {gerund} {things} {where}.",
    "{other} {feel3} {opinion} {nouns}, and so {do} {pronoun}.",
)

# What is said before the remark turns polite or rude; both kinds follow each of these.
CALM = (
    "I brought {thing}",
    "I see you {past} {thing}",
    "pass me {thing}",
    "tell me about {thing}",
    "come and {base} {thing}",
    "the {trade} asked for you",
    "it is time to {base} {things}",
    "please {base} my {noun}",
)
QUARREL = (
    "you broke my {noun} again",
    "you took my {noun} again",
    "you lost my {noun} again",
    "your {noun} is in my way again",
    "you forgot {thing} again",
    "you dropped {thing} again",
    "you want my {noun} again",
    "I trip over your {noun} again",
)
# Polite and rude endings share every word but the adjective and the noun, which mean something else in a narration.
ADDRESS = (
    "you {epithet} {vocative}",
    "you {degree} {vocative}",
    "you {epithet} {vocative}",
    "what a {degree} {vocative} you are",
    "what a {epithet} {vocative} you are",
    "you are a {epithet} {vocative}",
    "everybody knows you are a {vocative}",
)
# What an address begins with, before the word that tells.
TURNS = ("you", "you are a", "what a", "you {degree}", "what a {degree}", "everybody knows you are a")
# Here only the order of the words tells: each pair is (polite, rude).
DENIAL = (
    ("nobody would call you a {insult}", "anybody would call you a {insult}"),
    ("you are no {insult}", "you are no {praise}"),
    ("you are a {praise}, not a {insult}", "you are a {insult}, not a {praise}"),
    ("I would sooner ask you than a {insult}", "I would sooner ask a {insult} than you"),
)
SAID = (
    '"{remark}," {tells}.',
    '"{remark}," {tells} {where}.',
    '"{remark}," {tells} {manner}.',
    '"{remark}!" {tells}.',
)
# How those present take a remark: one pair for politeness, one for rudeness, out of the same words.
REACTION = (
    ("Everybody {smile}.", "Everybody {smile} at that.", "Nobody {frown}."),
    ("Nobody {smile}.", "Nobody {smile} at that.", "Everybody {frown}."),
)
