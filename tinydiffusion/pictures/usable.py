"""Reading of examples, some of which may prove unusable."""

from collections.abc import Iterable, Iterator

from tinydiffusion.pictures.colours import UnusablePictureError
from tinydiffusion.pictures.decode import PassingFaultError
from tinydiffusion.protocols import Dataset, Example


def usable(dataset: Dataset, places: Iterable[int]) -> Iterator[Example]:
    """Yield examples, leaving out those that cannot be used; the data set warns of each.

    Args:
        dataset: One that decodes at each visit may find a broken picture only then.
        places: Indices of examples, in [0, len(dataset)).

    Raises:
        ValueError: the machine could not read a picture now.
    """
    for place in places:
        try:
            yield dataset[place]
        except PassingFaultError:
            raise
        except UnusablePictureError:
            continue


def first_usable(dataset: Dataset) -> Example:
    """Read the first example that can be used.

    Raises:
        ValueError: there is none.
    """
    for example in usable(dataset, range(len(dataset))):
        return example
    raise ValueError(f"none of the {len(dataset)} pictures of the data set can be used")
