"""Warnings, each given once, about prompts and settings that a model was not made for."""

import warnings
from collections.abc import Iterable
from typing import Any

from tinydiffusion.abilities import KnowsWords
from tinydiffusion.build import prescribed_sampling
from tinydiffusion.config import Config, SamplingConfig
from tinydiffusion.pictures.captions import shown as printable
from tinydiffusion.protocols import TextEncoder
from tinydiffusion.registry import nearest, shown
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.without_effect import SAMPLING, Guidance, idle

MAX_SEARCHED = 5000  # most known words among which a near one is searched for, which is slow
MAX_NAMED = 20


class Remarks:
    """A source of warnings of words, settings and sampling that a model was not made for.

    Args:
        text_encoder: Text encoder of the model.
        config: Config of the run that made the model.
    """

    def __init__(self, text_encoder: TextEncoder, config: Config) -> None:
        self.text_encoder = text_encoder
        self.prescribed = prescribed_sampling(config)
        self.objective = config.objective.get("name")
        self._said: set[str] = set()  # messages, and words that were named

    def warn(self, prompts: Iterable[str], guidance: Guidance) -> None:
        """Warn of prompts, negative ones too, and settings, with each message given only once."""
        messages = [str(rule) for rule in idle(SAMPLING, guidance)]
        messages += self._other_sampling(guidance.sampling)
        new = [message for message in messages if message not in self._said]
        self._said.update(new)
        for message in new + self._unknown_words(prompts):
            warnings.warn(message, SettingWarning, stacklevel=4)

    def _other_sampling(self, sampling: SamplingConfig) -> list[str]:
        given = {name: getattr(sampling, name) for name in self.prescribed}
        if given == self.prescribed:
            return []
        other = {name: v for name, v in given.items() if v != self.prescribed[name]}
        return [
            f"objective {self.objective!r} made this model for {_listed(self.prescribed)}; "
            f"expect worse pictures with {_listed(other)}"
        ]

    def _unknown_words(self, prompts: Iterable[str]) -> list[str]:
        """Return a line that names the new words which no training caption had, or none."""
        encoder = self.text_encoder
        if not isinstance(encoder, KnowsWords) or encoder.words is None:
            return []
        known = encoder.words | self._said
        unknown = [word for word in encoder.words_of(prompts) if word not in known]
        if not unknown:
            return []
        self._said.update(unknown)
        named = ", ".join(_with_nearest(word, encoder.words) for word in unknown[:MAX_NAMED])
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        verb = "occurs" if len(unknown) == 1 else "occur"
        which = "" if encoder.all_words else " that were looked at"
        return [f"{named}{more} never {verb} in the training captions{which}"]


def _with_nearest(word: str, known: set[str]) -> str:
    near = nearest(word, known, cutoff=0.75) if len(known) <= MAX_SEARCHED else None
    quoted = f'"{printable(word)}"'
    return quoted if near is None else f'{quoted} (did you mean "{printable(near)}"?)'


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items())
