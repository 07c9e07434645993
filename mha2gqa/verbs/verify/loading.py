"""The two models of a pair, loaded once, when they are first needed, onto the same device in the same dtype."""

from functools import cached_property

from transformers import PreTrainedConfig, PreTrainedModel

from mha2gqa.model.devices import placement
from mha2gqa.model.feed import attempt
from mha2gqa.model.load import load_unchecked
from mha2gqa.record.pair import Pair


class Models:
    """Both models of a pair."""

    def __init__(self, pair: Pair, *, dtype: str | None, device: str | None) -> None:
        """Decide where they are run; nothing is loaded yet.

        Raises:
            DeviceError: The device is not there.
        """
        self.pair = pair
        self._place = placement(pair.original.directory, dtype=dtype, device=device, models=2)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Config of the original, without its weights."""
        return self.pair.original.architecture.config

    @cached_property
    def _original(self) -> tuple[PreTrainedModel, list[str]]:
        return load_unchecked(self.pair.original.directory, self._place)

    @cached_property
    def _converted(self) -> tuple[PreTrainedModel, list[str]] | str:
        return attempt(lambda: load_unchecked(self.pair.converted, self._place))

    @property
    def original(self) -> PreTrainedModel:
        """The original; keys that its own class does not know are left out, as transformers does."""
        return self._original[0]

    @property
    def converted(self) -> PreTrainedModel | None:
        """The converted checkpoint; None when it does not load strictly."""
        return None if isinstance(self._converted, str) or self.problems else self._converted[0]

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong with the keys of the converted checkpoint and not with the original's: `missing <name>`, ..."""
        if isinstance(self._converted, str):
            return [self._converted]
        return [problem for problem in self._converted[1] if problem not in self._original[1]]

    @property
    def dtype(self) -> str:
        """In which they are run."""
        return str(self.original.dtype).removeprefix("torch.")
