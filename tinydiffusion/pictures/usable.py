"""Reading of examples, some of which may prove unusable."""

from collections.abc import Callable, Iterable, Iterator

from tinydiffusion.pictures.colours import UnusablePictureError
from tinydiffusion.pictures.decode import PassingFaultError
from tinydiffusion.protocols import Dataset, Example


def read_usable(
    read: Callable[[], Example], note: Callable[[str], None] = lambda _: None
) -> Example | None:
    """Read an example; return None where it cannot be used.

    Args:
        read: Function that reads it; the data set has then warned of what is wrong.
        note: Called with the reason.

    Raises:
        ValueError: the machine could not read the picture now.
    """
    try:
        return read()
    except PassingFaultError:
        raise
    except UnusablePictureError as error:
        note(str(error))
        return None


def usable(dataset: Dataset, places: Iterable[int]) -> Iterator[Example]:
    """Yield examples, leaving out those that cannot be used; the data set warns of each.

    Args:
        dataset: One that decodes at each visit may find a broken picture only then.
        places: Indices of examples, in [0, len(dataset)).

    Raises:
        ValueError: the machine could not read a picture now.
    """
    for place in places:
        example = read_usable(lambda place=place: dataset[place])
        if example is not None:
            yield example


def first_usable(dataset: Dataset) -> Example:
    """Read the first example that can be used.

    Raises:
        ValueError: there is none.
    """
    for example in usable(dataset, range(len(dataset))):
        return example
    raise ValueError(f"none of the {len(dataset)} pictures of the data set can be used")
