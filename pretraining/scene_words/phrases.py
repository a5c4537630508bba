"""Phrases for things: articles, plurals, counts and spots."""

from __future__ import annotations

from functools import cache

from .scene import COLOURS, GROUNDS, NUMBERS, Group, Place

_SPOTS = (
    ("in the upper left corner", "at the top", "in the upper right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left corner", "at the bottom", "in the lower right corner"),
)
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "loaf": "loaves",
    "shelf": "shelves",
    "scarf": "scarves",
    "ox": "oxen",
    "bus": "buses",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "cactus": "cacti",
}
_SAME = frozenset(
    ("sheep", "fish", "deer", "bread", "rice", "bacon", "corn", "garlic", "milk", "sushi", "salt", "fire")
)
_LINKS = (" of ", " with ", " without ", " on ", " in ", " behind ", " for ", " holding ", " at ", " from ", " and ")
_AN_AS_A = ("uni", "eu", "uk", "one", "use", "ut")
_A_AS_AN = ("hour", "heir", "honest")


def spot_name(place: Place) -> str:
    """Where something is, by thirds of the picture: ``in the upper left corner``."""
    return _SPOTS[min(2, int(place.y * 3))][min(2, int(place.x * 3))]


@cache
def is_plural(name: str) -> bool:
    """Whether a name says several things, such as ``scissors`` or ``clinking glasses``."""
    word = _head(name)[0].rpartition(" ")[2].lower()
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "as", "os")) and word not in _IRREGULAR


@cache
def article(words: str) -> str:
    """``words`` with a or an before them, or as they are if they are plural."""
    if is_plural(words):
        return words
    start = words.lower()
    vowel = (start[:1] in "aeiou" and not start.startswith(_AN_AS_A)) or start.startswith(_A_AS_AN)
    return f"{'an' if vowel else 'a'} {words}"


@cache
def plural(name: str) -> str:
    """A name's plural: ``glass of milk`` gives ``glasses of milk``."""
    head, rest = _head(name)
    before, space, word = head.rpartition(" ")
    low = word.lower()
    if is_plural(name) or low in _SAME or low.endswith("fish"):
        many = word
    elif low in _IRREGULAR:
        many = _IRREGULAR[low]
    elif low.endswith(("man",)) and low not in ("human", "german", "talisman"):
        many = word[:-2] + "en"
    elif low.endswith(("s", "x", "z", "ch", "sh")):
        many = word + "es"
    elif low.endswith("y") and low[-2:-1] not in tuple("aeiou"):
        many = word[:-1] + "ies"
    else:
        many = word + "s"
    return before + space + many + rest


@cache
def _head(name: str) -> tuple[str, str]:
    """What a name names, and what it says besides: ``glass``, `` of milk``."""
    ends = [place for link in _LINKS if (place := name.find(link)) > 0]
    end = min(ends, default=len(name))
    return name[:end], name[end:]


def counted(group: Group, article_too: bool = True) -> str:
    """A group in words: ``three red apples``, ``an apple``."""
    count = len(group.places)
    name = f"{group.colour} {group.name}" if group.colour else group.name
    if count == 1:
        return article(name) if article_too else name
    return f"{NUMBERS[count]} {plural(name)}"


def definite(group: Group) -> str:
    """``the apple`` or ``the apples``; the tint is left out, since names are unique in a scene."""
    return f"the {group.name if len(group.places) == 1 else plural(group.name)}"


_COLOUR_WORDS = frozenset((*COLOURS, *GROUNDS, "gray", "rainbow", "golden", "silver", "dark", "light", "coloured"))


@cache
def tintable(name: str) -> bool:
    """Whether a name says nothing of a colour itself."""
    return _COLOUR_WORDS.isdisjoint(name.lower().replace("-", " ").split())
