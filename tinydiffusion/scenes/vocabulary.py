"""The words of ShapeScenes, their colours, and the dataclasses of scenes."""

from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle")
WORD = "word"
"""The shape of an object that is a word, which is its `text`."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 210, 40),
    "purple": (140, 40, 180),
    "cyan": (50, 200, 220),
}
"""Object colours, RGB."""

BACKGROUNDS = {
    "white": (248, 248, 248),
    "black": (16, 16, 16),
    "gray": (140, 140, 140),
    "pink": (245, 160, 185),
}
"""Background colours, RGB; at least 100 levels (Euclidean) from each other and from COLOURS."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Relation -> the equivalent relation of the exchanged objects."""

RELATIONS = tuple(INVERSE)
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

Category = Literal["one_object", "two_objects", "counting", "spelling"]
CATEGORIES: tuple[Category, ...] = ("one_object", "two_objects", "counting", "spelling")

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True)
class ObjectDescription:
    """The description of one object in a caption."""

    shape: str
    colour: str | None = None  # None: left open
    text: str = ""  # letters of a word


@dataclass(frozen=True)
class Object:
    """One object as drawn; `x`, `y` (right and down) and `radius` are in units of the side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float  # half the extent, the same along both axes; half the width of a word
    text: str = ""  # letters of a word

    @property
    def description(self) -> ObjectDescription:
        """The complete description of the object."""
        return ObjectDescription(self.shape, self.colour, self.text)


@dataclass(frozen=True)
class SceneDescription:
    """The content of a caption: one object or word, two unlike objects, or several equal ones."""

    background: str | None  # None: left open
    objects: tuple[ObjectDescription, ...]
    relation: str | None = None  # objects[0] is `relation` objects[1]

    def exchanged(self) -> "SceneDescription":
        """Return the same pair from its second object: "A left of B" becomes "B right of A"."""
        relation = None if self.relation is None else INVERSE[self.relation]
        return SceneDescription(self.background, self.objects[::-1], relation)

    def canonical(self) -> "SceneDescription":
        """Return the form that all descriptions with the same meaning have in common."""
        if self.relation in ("right of", "below"):
            return self.exchanged()
        if self.relation is None:
            objects = sorted(self.objects, key=lambda o: (o.shape, o.colour or "", o.text))
            return SceneDescription(self.background, tuple(objects))
        return self


@dataclass(frozen=True)
class Scene:
    """A scene as drawn, or as read from a picture (then without a relation)."""

    background: str
    objects: tuple[Object, ...]
    relation: str | None = None

    @property
    def description(self) -> SceneDescription:
        """The complete description of the scene."""
        objects = tuple(o.description for o in self.objects)
        return SceneDescription(self.background, objects, self.relation)
