"""Files that a configuration names, read from beside it and remembered, so that they go where it goes."""

from pathlib import Path

from breakwater_gateway.config.yaml_tree import TEXT_MAX


class Beside:
    """Reads what the configuration at `path` names; a relative name is one beside it."""

    def __init__(self, path: str) -> None:
        self._folder = Path(path).parent
        self.read: dict[str, str] = {}
        """By the name as it was written."""

    def __call__(self, name: str) -> bytes:
        """Raises `OSError`, or `ValueError` for what is no text."""
        with (self._folder / name).open("rb") as file:
            data = file.read(TEXT_MAX + 1)
        self.read[name] = data.decode("utf-8-sig")
        return data
