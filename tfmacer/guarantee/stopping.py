"""Stop rules."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class StopRule:
    """When to stop drawing."""

    kind: str = "fixed"
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "StopRule":
        """Reads a stop rule."""
        return cls(text)

    def __str__(self) -> str:
        return self.kind
