"""Questions about two drawn pictures, and batches of them."""

from tests.helpers.pictures import draw
from tests.helpers.writers import WRITERS

KINDS = tuple(WRITERS)
PICTURES = [draw("circle", "red", 96), draw("square", "blue", 64).resize((80, 44))]
ASKED = [  # question, its picture, answers
    ("what colour is it?", 0, ["red", "a red circle"]),
    ("is it a circle?", 0, ["yes"]),
    ("what shape is it, and is there a dog in the picture?", 1, ["square", "no", "a photo of one square"]),
]
QUESTIONS, WHICH = [row[0] for row in ASKED], [row[1] for row in ASKED]
ANSWERS = [(number, answer) for number, row in enumerate(ASKED) for answer in row[2]]


def pixels(backbone, pictures=PICTURES):
    return [backbone.view()(picture) for picture in pictures]


def collate(backbone, pictures=PICTURES, questions=QUESTIONS, **more):
    return backbone.collate(
        pixels(backbone, pictures), questions, prompt=backbone.defaults["prompt"], longest=100, **more
    )


def both(backbone):
    """The batch of all answers, a picture once for its questions."""
    answers = [answer for _, answer in ANSWERS]
    return collate(backbone, which=WHICH, answers=answers, of=[number for number, _ in ANSWERS])
