"""Where the things are that a file names: paths and stores are meant from the file's own folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from synckit_streams.errors import ConfigError
from synckit_streams.runtime.ownership import IN_FILES


class Places:
    """The folder of a file, and the one in which its pipelines keep what they remember.

    Args:
        file: The pipelines' file.
        state: In which folder the state folder is; None is the file's own, which may be read-only.
    """

    def __init__(self, file: Path, state: Path | None = None) -> None:
        self.folder = file.resolve().parent
        self.states = (self.folder if state is None else state.resolve()) / f"{file.stem}.state"

    def path(self, given: str) -> Path:
        """A path that the file names."""
        return self.folder / given

    def url(self, given: str) -> str:
        """A store's URL that the file names."""
        scheme, colon, rest = given.partition(":///")
        if not colon or scheme.lower() not in IN_FILES or rest.startswith("/"):
            return given
        path, question, options = rest.partition("?")
        return f"{scheme}:///{quote(str(self.folder))}/{path}{question}{options}"

    def kept(self, name: str, given: str = "") -> str:
        """The URL of a store that a pipeline needs for itself: as the file names it, or a file in the state folder.

        Raises:
            ConfigError: there can be no such folder.
        """
        if given:
            return self.url(given)
        try:
            self.states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the state folder {self.states} cannot be made: {error.strerror}",
                hint="choose another place with --state FOLDER",
            ) from error
        return f"sqlite:///{quote(str(self.states / name))}.db"

    def dead_letter(self, pipeline: str) -> Path:
        """Where its dead letter is, if the file names none."""
        return self.states / f"{pipeline}.dead.jsonl"
