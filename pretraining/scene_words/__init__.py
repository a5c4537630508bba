"""Random scenes of several things, and what can be said and asked of them, without any picture.

A scene is made from a list of names, such as those of a set of drawings; whoever draws it pastes the drawing of each
name where `drawn` says. Positions are numbers: the centre (x to the right, y down) and the side of a square, all as
shares of the picture's side. The package needs nothing but Python, and a scene with its words takes about 25
microseconds, so that scenes can be made while a model trains.

    rng = random.Random(0)
    scene = still_scene(rng, ["red apple", "dog", "car"], colours=list(COLOURS))
    captions(rng, scene, 3)                 # ["two dogs left of a red apple", ...]
    questions(rng, scene, names)            # [Question("count", "how many dogs are there?", "two"), ...]
    drawn(scene)                            # [Drawn("dog", "", Place(0.2, 0.3, 0.3)), ...]
    clip = moving_scene(rng, names)         # one thing moves, grows, shrinks, appears or disappears
    drawn(clip, 0.5)                        # half-way through
    twin(rng, scene)                        # the same things, but another side, count, colour or change
"""

from .asking import QUESTIONS, Question, question, questions
from .captioning import caption, captions, facts, implied
from .making import moving_scene, still_scene
from .phrases import article, is_plural, plural, tintable
from .scene import CHANGES, COLOURS, GROUNDS, MOVES, Change, Drawn, Group, Place, Scene, drawn
from .twins import twin

__all__ = [
    "CHANGES",
    "COLOURS",
    "Change",
    "Drawn",
    "GROUNDS",
    "Group",
    "MOVES",
    "Place",
    "QUESTIONS",
    "Question",
    "Scene",
    "article",
    "caption",
    "captions",
    "drawn",
    "facts",
    "implied",
    "is_plural",
    "moving_scene",
    "plural",
    "question",
    "questions",
    "still_scene",
    "tintable",
    "twin",
]
