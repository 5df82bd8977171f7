"""What artists were called before: asked of the site once for each of their tags and remembered.

Sites rename an artist's tag and leave the old name in others, a character's say, and lists of whom
not to train on keep it too. So a download does not end before the site has told: a caption that
says a former name, or a picture of someone who asked not to be trained on, cannot be taken back.
"""

from collections.abc import Callable, Sequence

from pipeline.download.categories import batches
from pipeline.download.posts import Dialect, Malformed, Question
from pipeline.download.store import Store
from pipeline.download.trouble import RESUMABLE
from pipeline.errors import UrushiError
from pipeline.progress import Progress


class Aliases:
    """Learns the former names of one site's artists."""

    def __init__(self, store: Store, ask: Callable[[Question], object], dialect: Dialect) -> None:
        self._store = store
        self._ask = ask
        self._dialect = dialect
        self._last: tuple[Question, list[tuple[str, str]] | None] | None = None
        """Some sites tell of all tags at once, and are asked once."""

    def learn(self, progress: Progress, what: str, before: str = "") -> bool:
        """Asks for the artists that were not asked for yet, or not since `before` (ISO 8601, UTC).

        Returns whether a former name came that was not known, so that more may be excluded.

        Raises:
            UrushiError: the site fails, or its list of aliases is none.
        """
        if self._dialect.aliases(()) is None:
            return False
        names = self._store.unasked_artists(before)
        if not names:
            return False
        is_new = False
        with progress.bar(f"{what}: former names", len(names), "artists") as bar:
            for batch in batches(names):
                found = self._of(batch)
                if found is None:
                    # A site of one's own may lack the list; it is asked again by the next run.
                    progress.say(
                        f"{self._dialect.site} has no list of tag aliases: former names of artists "
                        "are not known. [caption].artist_names and [exclude] take them."
                    )
                    break
                is_new = self._store.save_aliases(batch, found) or is_new
                bar.advance(len(batch))
        return is_new

    def _of(self, batch: Sequence[str]) -> list[tuple[str, str]] | None:
        """(former name, name) of the artists of `batch`; None where the site has no such list."""
        question = self._dialect.aliases(batch)
        assert question is not None
        found = self._answer(question)
        if found is None:
            return None
        most = int(question.parameters.get("limit", "0"))
        if most and len(found) >= most and len(batch) > 1:  # More may have been cut off.
            half = len(batch) // 2
            parts = [self._of(batch[:half]), self._of(batch[half:])]
            return [row for part in parts for row in part or ()]
        wanted = set(batch)
        return [(former, name) for former, name in found if name in wanted and former != name]

    def _answer(self, question: Question) -> list[tuple[str, str]] | None:
        if self._last is None or self._last[0] != question:
            try:
                content = self._ask(question)
                found = None if content is None else self._dialect.read_aliases(content)
            except (Malformed, UrushiError) as error:
                raise UrushiError(
                    f"{self._dialect.site} does not tell the former names of artists "
                    f"({question.path}), and without them one may come into a caption or an "
                    f"exclusion miss its artist: {error} A key must be allowed to read them. "
                    f"{RESUMABLE}"
                ) from error
            self._last = question, found
        return self._last[1]
