"""The words of ShapeScenes, their colours, and the dataclasses that a scene is made of."""

from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle")

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
"""Relation -> the relation that says the same of the exchanged objects."""

RELATIONS = tuple(INVERSE)
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

Category = Literal["one_object", "two_objects", "counting"]
CATEGORIES: tuple[Category, ...] = ("one_object", "two_objects", "counting")

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True, order=True)
class ObjectDescription:
    """What a caption says of one object."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Object:
    """One object as drawn; `x`, `y` (right and down) and `radius` are in units of the side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float  # half the extent, the same along both axes

    @property
    def description(self) -> ObjectDescription:
        """What a caption says of it."""
        return ObjectDescription(self.shape, self.colour)


@dataclass(frozen=True)
class SceneDescription:
    """What a caption says: one object, two in a relation, or several without."""

    background: str
    objects: tuple[ObjectDescription, ...]
    relation: str | None = None  # objects[0] is `relation` objects[1]

    def exchanged(self) -> "SceneDescription":
        """The same pair told from its second object: "A left of B" becomes "B right of A"."""
        assert self.relation is not None
        return SceneDescription(self.background, self.objects[::-1], INVERSE[self.relation])

    def canonical(self) -> "SceneDescription":
        """The one form of all descriptions that say the same."""
        if self.relation in ("right of", "below"):
            return self.exchanged()
        if self.relation is None:
            return SceneDescription(self.background, tuple(sorted(self.objects)))
        return self


@dataclass(frozen=True)
class Scene:
    """A scene as drawn."""

    background: str
    objects: tuple[Object, ...]
    relation: str | None = None

    @property
    def description(self) -> SceneDescription:
        """What its captions say."""
        objects = tuple(o.description for o in self.objects)
        return SceneDescription(self.background, objects, self.relation)
