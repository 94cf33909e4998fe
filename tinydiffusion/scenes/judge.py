"""The exact judge, which checks whether a picture fulfils its prompt."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.scenes.geneval import Included, Prompt, ask
from tinydiffusion.scenes.reading import read, relation
from tinydiffusion.scenes.vocabulary import Object, Scene

Outcome = Literal["right", "wrong", "skip"]

ATOMS = ("background", "exists", "count", "colour", "text", "relation", "exclude")
"""Kinds of atoms."""

NOTHING = Scene("", ())


@dataclass(frozen=True)
class Atom:
    """One condition that is right or wrong in a picture."""

    kind: str  # one of ATOMS
    right: bool
    reason: str  # what is wrong if it is not right


@dataclass(frozen=True)
class Verdict:
    """The verdict on a picture: right if every atom is; if it is skipped, all atoms are wrong."""

    outcome: Outcome
    atoms: tuple[Atom, ...]

    @property
    def right(self) -> bool:
        """Whether the whole prompt is fulfilled."""
        return self.outcome == "right"

    @property
    def reason(self) -> str:
        """The reasons of the wrong atoms, one per line."""
        return "\n".join(dict.fromkeys(atom.reason for atom in self.atoms if not atom.right))


def judge(image: UInt8[Tensor, "3 H W"], asked: str | Prompt) -> Verdict:
    """Judge whether a picture fulfils a prompt.

    Args:
        image: The picture.
        asked: A prompt, or a caption of one of the templates.

    Raises:
        ValueError: the caption matches no template.
    """
    prompt = ask(asked) if isinstance(asked, str) else asked
    if prompt is None:
        raise ValueError(
            f"the judge cannot read the caption {asked!r}; it reads those of "
            "tinydiffusion.scenes.captions, such as 'a red circle on a white background'"
        )
    return compare(read(image), prompt)


def compare(seen: Scene | None, asked: Prompt) -> Verdict:
    """Judge a scene that was read from a picture (None: not well-formed).

    A scene in which objects of a required relation lie on a diagonal is not well-formed either.
    """
    if seen is None or _on_a_diagonal(seen, asked):
        atoms = [replace(a, right=False, reason="not well-formed") for a in _atoms(NOTHING, asked)]
        return Verdict("skip", tuple(atoms))
    atoms = tuple(_atoms(seen, asked))
    return Verdict("right" if all(atom.right for atom in atoms) else "wrong", atoms)


def _atoms(seen: Scene, asked: Prompt) -> list[Atom]:
    atoms = []
    shapes = Counter(o.shape for o in seen.objects)
    if (ground := asked.background) is not None:
        reason = f"expected a {ground} background, found {seen.background}"
        atoms.append(Atom("background", seen.background == ground, reason))
    for i, included in enumerate(asked.include):
        atoms += _atoms_of_objects(seen, shapes, asked, i)
        if included.position is not None:
            atoms.append(_atom_of_relation(seen, asked, included))
    named = {included.shape for included in asked.include}
    if others := [e for e in asked.exclude if e.shape not in named]:
        unwanted = [e for e in others if shapes[e.shape] >= e.count]
        reason = ", ".join(f"expected {e.shape}<{e.count}" for e in unwanted)
        atoms.append(Atom("exclude", not unwanted, reason))
    return atoms


def _atoms_of_objects(seen: Scene, shapes: Counter[str], asked: Prompt, i: int) -> list[Atom]:
    """Check existence, count, colour and text of the objects of `include[i]`.

    Entries of equal shape need different objects: each needs its own beyond those of the entries
    before it.
    """
    included, before = asked.include[i], asked.include[:i]
    shape, count, colour = included.shape, included.count, included.colour
    found = shapes[shape]
    taken = sum(other.count for other in before if other.shape == shape)
    limit = min((e.count for e in asked.exclude if e.shape == shape), default=found + 1)
    told = f"expected {shape}>={taken + count}, found {found}"
    if found >= limit:
        told = f"expected {shape}<{limit}, found {found}"
    atoms = [
        Atom("exists", found > taken, told),
        Atom("count", taken + count <= found < limit, told),
    ]
    if colour is not None:
        fit = sum(o.shape == shape and o.colour == colour for o in seen.objects)
        need = sum(o.count for o in before if (o.shape, o.colour) == (shape, colour)) + count
        reason = f"expected {colour} {shape}>={need}, found {fit}"
        atoms.append(Atom("colour", fit >= need, reason))
    if included.text:
        texts = [o.text for o in seen.objects if o.text]
        reason = f"expected the word {included.text}, found {' and '.join(texts) or 'none'}"
        atoms.append(Atom("text", included.text in texts, reason))
    return atoms


def _atom_of_relation(seen: Scene, asked: Prompt, included: Included) -> Atom:
    assert included.position is not None
    wanted, target = included.position[0], asked.include[included.position[1]]
    found = [relation(a, b) for a, b in _pairs(seen, included, target)]
    reason = f"expected {included.shape} {wanted} {target.shape}, found "
    right = bool(found) and all(each == wanted for each in found)
    return Atom("relation", right, reason + (" and ".join(map(str, found)) or "no such pair"))


def _on_a_diagonal(seen: Scene, asked: Prompt) -> bool:
    """Return whether two objects of a required relation are near the diagonal, in no relation."""
    related = [(i, asked.include[i.position[1]]) for i in asked.include if i.position is not None]
    return any(relation(a, b) is None for two in related for a, b in _pairs(seen, *two))


def _pairs(seen: Scene, first: Included, second: Included) -> list[tuple[Object, Object]]:
    """Return all pairs of different objects that match the first entry and the second."""
    groups = (
        [o for o in seen.objects if o.shape == i.shape and i.colour in (None, o.colour)]
        for i in (first, second)
    )
    return [(a, b) for a, b in product(*groups) if a is not b]
