"""The words of the built-in corpus: a hand-written core, and what morphology makes of it; and a few of them.

Rude words are plain household and harbour nouns (`turnip`, `haddock`): they insult only in the place where they
stand, so that a word list
cannot tell a rude text from a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from entangle.data.morphology import adverb, join


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Topic:
    """The vocabulary of one subject matter; `insults` are also among its `nouns`."""

    name: str
    nouns: tuple[str, ...]
    compounds: tuple[str, ...]
    places: tuple[str, ...]
    trades: tuple[str, ...]
    verbs: tuple[str, ...]
    materials: tuple[str, ...]
    insults: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """All words, ordered so that the plainest stand first (draws are skewed towards the beginning)."""

    topics: tuple[Topic, Topic]
    women: tuple[str, ...]
    men: tuple[str, ...]
    towns: tuple[str, ...]
    verbs: tuple[str, ...]
    looks: tuple[str, ...]
    manners: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    likes: tuple[str, ...]
    dislikes: tuple[str, ...]
    kind: tuple[str, ...]
    unkind: tuple[str, ...]
    praises: tuple[str, ...]
    insults: tuple[str, ...]


KITCHEN_INSULTS = _words(
    """
    turnip cabbage parsnip gherkin noodle pudding muffin spud walnut pickle dumpling crumpet sprout teabag colander
    radish
    """
)
HARBOUR_INSULTS = _words(
    """
    haddock barnacle plank limpet sponge mackerel anchor whelk bucket jellyfish herring cuttlefish winkle flounder
    bollard puffin
    """
)
PRAISES = _words(
    """
    gem star treasure pearl marvel wonder jewel hero beacon blessing delight champion friend darling sunbeam angel
    """
)

KITCHEN = (
    """
    kettle spoon soup loaf plate oven apron ladle stew jug basin crust onion recipe knife skillet supper sauce
    teacup dough
    """
    """
    carrot cheese honey cake broth napkin oatcake pepper butter plum egg herb candle stove tablecloth tart porridge
    grater
    """
)
HARBOUR = (
    """
    boat net rope sail oar lantern tide mast ferry crab compass gull chart rudder barrel hull wave jetty flag pilot
    """
    """
    cargo keel buoy cabin hammock deck harpoon chain shell trawler dinghy signal canvas fish winch telescope paddle
    crate
    """
)
KITCHEN_PLACES = """
    kitchen pantry cellar larder scullery bakery dairy parlour garden market inn teahouse orchard canteen
"""
HARBOUR_PLACES = """
    harbour quay breakwater lighthouse boatyard beach cove wharf slipway lagoon estuary headland dock reef
    """
KITCHEN_VERBS = """
    stir bake peel chop boil roast taste serve season knead slice simmer grate fry mash butter toast strain pour
    sweeten
"""
HARBOUR_VERBS = """
    haul moor row launch steer anchor tow tar hoist patch unload rig paddle coil net ferry ballast caulk salvage
    berth
    """
KITCHEN_PARTS = """
    bread soup jam pie tea milk egg bean salt herb flour plum broth honey onion cheese apple barley ginger mustard
    """
HARBOUR_PARTS = """
    net sail tar rope crab cork tide keel mast oar gull brine pilot dock lamp flag ferry chain whale storm
"""
HEADS = """
    box pot rack hook lid basket shelf bench cloth strap board barrel cart bag drawer stand trough press
"""
TRADES = "maker seller keeper hand wright monger mender packer"
MATERIALS = """
    copper wooden iron clay tin linen glass leather woollen brass stone silver wicker canvas oaken pewter
"""

VERBS = _words(
    """
    carry find hold take bring clean move keep lift mend see wash watch open fill make lose sell buy leave count
    hide drop paint
    """
    """
    polish borrow fetch wrap push pull weigh build store check mark inspect gather sort cover turn lower raise
    stack guard scrub
    """
    """
    measure empty remember forget draw admit replace repair return examine collect tie unpack show steal sweep hang
    send order
    """
    "label trade admire notice"
)
LOOKS = _words(
    """
    old small big long new round heavy short plain blue green red white grey brown yellow thin wide tall flat
    square narrow
    """
    """
    spare painted empty dusty patched striped folded borrowed numbered speckled hollow crooked polished pointed
    oval dented
    """
)
GOOD = _words(
    """
    lovely good fine splendid wonderful delightful charming pleasant excellent cheerful beautiful perfect superb
    graceful
    """
    """
    marvellous glorious brilliant bright handsome sweet precious gentle merry radiant tidy sunny generous helpful
    faithful joyful
    """
    "dear kind clever noble patient"
)
BAD = _words(
    """
    dreadful bad awful horrid nasty terrible gloomy miserable dismal ugly dull useless rotten soggy hopeless clumsy
    mouldy
    """
    """
    smelly rusty sour bitter witless wretched lousy feeble grubby dreary stupid worthless foolish lazy greedy idle
    slimy daft
    """
)
KIND = _words(
    """
    dear kind lovely clever precious gentle patient generous helpful noble brilliant sweet faithful wonderful
    splendid bright
    """
)
UNKIND = _words(
    """
    useless soggy witless daft rotten miserable clumsy stupid mouldy lazy hopeless smelly foolish worthless greedy
    slimy
    """
)
LIKES = _words("love enjoy like admire praise treasure cherish adore")
DISLIKES = _words("hate dislike dread loathe resent regret curse detest")

STEMS = _words(
    """
    Mar Tess Vel Bor Cal Dar Ell Fen Gar Hal Ing Jor Kel Lor Mil Nor Orl Pel Quin Ros Sel Tam Ulv Ver Wil Yor Zan
    Ald Bran Cor
    """
    """
    Dun Ein Far Grim Hest Isk Jas Kir Lann Mor Nell Osk Per Rand Sten Thur Urs Vand Wend Ard Bel Cran Dell Emb Frey
    Gald Holm
    """
    "Ilm Jen Kest Lind Mell"
)
FEMALE_ENDINGS = _words("a iel ora wyn ine ette issa ena ilda anne ira")
MALE_ENDINGS = _words("ow o ric en in mund aric old win ovan emar")
TOWN_ENDINGS = _words("stow wick mere ford haven combe thorpe dale ness by moor gate")


def _topic(
    name: str, nouns: str, places: str, verbs: str, parts: str, insults: tuple[str, ...], praises: tuple[str, ...]
) -> Topic:
    # Insults and praises come early among the nouns, so that both are seen often in places where they mean only
    # themselves.
    plain, address = _words(nouns), (word for pair in zip(insults, praises, strict=True) for word in pair)
    return Topic(
        name=name,
        nouns=(*plain[:8], *address, *plain[8:]),
        compounds=join(_words(parts), _words(HEADS)),
        places=_words(places) + join(_words(parts), ["house", "room", "yard", "loft"]),
        trades=join(_words(parts), _words(TRADES)),
        verbs=_words(verbs),
        materials=_words(MATERIALS),
        insults=insults,
    )


@cache
def lexicon() -> Lexicon:
    """The words, built once."""
    # Half of the praises are at home in each topic, so that neither insults nor praises give the topic away.
    kitchen = _topic("kitchen", KITCHEN, KITCHEN_PLACES, KITCHEN_VERBS, KITCHEN_PARTS, KITCHEN_INSULTS, PRAISES)
    harbour = _topic("harbour", HARBOUR, HARBOUR_PLACES, HARBOUR_VERBS, HARBOUR_PARTS, HARBOUR_INSULTS, PRAISES)
    return Lexicon(
        topics=(kitchen, harbour),
        women=join(STEMS, FEMALE_ENDINGS),
        men=join(STEMS, MALE_ENDINGS),
        towns=join(STEMS, TOWN_ENDINGS),
        verbs=VERBS,
        looks=LOOKS,
        manners=tuple(
            adverb(word) for word in _words("quiet slow quick careful calm brief solemn sudden idle busy steady eager")
        ),
        good=GOOD,
        bad=BAD,
        likes=LIKES,
        dislikes=DISLIKES,
        kind=KIND,
        unkind=UNKIND,
        praises=PRAISES,
        insults=tuple(word for pair in zip(KITCHEN_INSULTS, HARBOUR_INSULTS, strict=True) for word in pair),
    )


@cache
def few_words() -> Lexicon:
    """So few of the words that a model of a quarter of a million parameters learns them in some hundred steps.

    What somebody is called is called nothing else here: names for the listener are no things, and the adjectives that
    go with them judge nothing.
    """
    whole = lexicon()
    insults, praises = (KITCHEN_INSULTS[:1], HARBOUR_INSULTS[:1]), PRAISES[:2]
    topics = tuple(
        replace(
            topic,
            nouns=topic.nouns[:8],
            compounds=topic.nouns[:6],
            places=topic.places[:6],
            trades=topic.trades[:5],
            verbs=topic.verbs[:6],
            materials=topic.materials[:4],
            insults=rude,
        )
        for topic, rude in zip(whole.topics, insults, strict=True)
    )
    return Lexicon(
        topics=(topics[0], topics[1]),
        women=_words("Mara Tess Nell Ida Ruth Cora Elsa Vera"),
        men=_words("Jon Karl Finn Otto Hugo Nils Emil Rolf"),
        towns=_words("Elmstow Norwick Westmere Ashford Oakhaven Millcombe"),
        verbs=VERBS[:16],
        looks=LOOKS[:10],
        manners=whole.manners[:5],
        good=_words("fine splendid pleasant excellent perfect superb tidy bright"),
        bad=_words("dreadful awful horrid terrible gloomy dismal dull ugly"),
        likes=LIKES[:4],
        dislikes=DISLIKES[:4],
        kind=_words("dear kind"),
        unkind=_words("useless daft"),
        praises=praises,
        insults=tuple(word for pair in zip(*insults, strict=True) for word in pair),
    )
