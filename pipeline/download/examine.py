"""Files that came as promised into pictures that are known to decode, and into how they look.

The md5 says that a file is the one that was uploaded; some were cut off before that. Each is
decoded once, beside the download or after it. What cannot be is a row with a reason, and its file
goes.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from pipeline.artefacts.files import translated
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.choice import Wanted
from pipeline.download.decoders import COUNT, decoders
from pipeline.download.header import EXTENSIONS, Unusable
from pipeline.download.likeness import Looks
from pipeline.download.store import Store
from pipeline.progress import Progress

THREADS = COUNT
"""Each waits for a process that decodes one picture."""
AHEAD = 8
"""Files handed to the threads before an answer is waited for."""


class Examiner:
    """Looks at the files of one dataset and notes what it finds."""

    def __init__(self, store: Store, folder: DatasetFolder, most_pixels: int) -> None:
        self._store = store
        self._folder = folder
        self._most_pixels = most_pixels

    def look(self, md5: str, extension: str) -> Looks | Unusable:
        """How a file looks, or why it is no picture. Touches no store: any thread may call it.

        Raises:
            OSError: the disk cannot be read.
        """
        path = self._folder.original(md5, extension)
        try:
            return decoders().examine(path, EXTENSIONS, self._most_pixels)[1]
        except Unusable as error:
            return error

    def note(self, md5: str, extension: str, found: Looks | Unusable) -> None:
        """Writes down what was found of a file that the store has."""
        if isinstance(found, Looks):
            self._store.examined(md5, found)
            return
        # The file first: killed in between, the next run finds it missing and fetches it once more.
        # The other way round a file would lie there that no row knows.
        with translated(self._folder.originals):
            self._folder.original(md5, extension).unlink(missing_ok=True)
        self._store.settle(md5, "bad_content", str(found))


def examine_all(
    examiner: Examiner, unexamined: Iterable[Wanted], progress: Progress, what: str
) -> None:
    """Examines files that are here.

    Raises:
        OSError: the disk cannot be read.
    """
    unseen = [(item.md5, item.extension or "") for item in unexamined]
    if not unseen:
        return
    todo = iter(unseen)
    under_way: deque[tuple[str, str, Future[Looks | Unusable]]] = deque()
    spoiled = 0
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress.bar(f"{what}: look", len(unseen), "pictures") as bar,
    ):

        def hand_out(count: int) -> None:
            for md5, extension in islice(todo, count):
                under_way.append((md5, extension, pool.submit(examiner.look, md5, extension)))

        hand_out(AHEAD)
        while under_way:
            md5, extension, future = under_way.popleft()
            found = future.result()
            examiner.note(md5, extension, found)
            if isinstance(found, Unusable):
                spoiled += 1
                bar.note(f"{spoiled} do not decode")
            bar.advance()
            hand_out(1)
