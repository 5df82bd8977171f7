"""Where everything lies. The only place that knows the workspace's layout."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.identity import Identities

SINGLE_FILE = ".safetensors"
ORIGINALS = "originals"


def original_name(md5: str, extension: str) -> str:
    """Where an original lies in its dataset's folder: as text, for it is asked of every picture."""
    return f"{ORIGINALS}/{md5[:2]}/{md5[2:4]}/{md5}.{extension}"


@dataclass(frozen=True)
class DatasetFolder:
    """WORKSPACE/datasets/NAME."""

    root: Path

    @property
    def posts(self) -> Path:
        """SQLite: every fact about every post, artists included."""
        return self.root / "posts.sqlite"

    @property
    def originals(self) -> Path:
        return self.root / ORIGINALS

    def original(self, md5: str, extension: str) -> Path:
        """originals/ab/cd/MD5.ext."""
        return Path(self.root, original_name(md5, extension))

    @property
    def parts(self) -> Path:
        """Originals that have come in part, by md5: the next run asks for the rest."""
        return self.root / "parts"

    @property
    def quarantine(self) -> Path:
        """Files that came whole, twice alike, and are not what their posts promise. Never read."""
        return self.root / "quarantine"

    @property
    def images(self) -> Path:
        """The folder of images.jsonl (ImageRecord), failures.jsonl and download's receipt."""
        return self.root / "images"

    @property
    def masks(self) -> Identities:
        """What is remembered of its masks: more files than a workspace's memory should hold."""
        return Identities(self.root / "masks.json")

    def captions(self, fingerprint: str) -> Path:
        return self.root / "captions" / fingerprint

    def tags(self, fingerprint: str) -> Path:
        """What a tagger sees in the pictures."""
        return self.root / "tags" / fingerprint

    def resized(self, fingerprint: str) -> Path:
        return self.root / "resized" / fingerprint

    def cache(self, fingerprint: str) -> Path:
        return self.root / "cache" / fingerprint


@dataclass(frozen=True)
class RoundFolder:
    """WORKSPACE/builds/NAME/rounds/NN."""

    root: Path
    suffix: str = SINGLE_FILE
    """As BuildFolder's."""

    @property
    def lora(self) -> Path:
        return self.root / "lora.safetensors"

    @property
    def train(self) -> Path:
        """Resume state and the log of losses."""
        return self.root / "train"

    @property
    def held_out(self) -> Path:
        return self.root / "heldout.json"

    @property
    def checkpoint(self) -> Path:
        return self.root / f"checkpoint{self.suffix}"

    @property
    def growth(self) -> Path:
        """What the round did to each layer: GrowthFile."""
        return self.root / "growth.json"

    @property
    def grid(self) -> Path:
        return self.root / "grid.png"

    @property
    def decisions(self) -> Path:
        """What a person was asked about the round, and answered."""
        return self.root / "decisions.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples"


@dataclass(frozen=True)
class BuildFolder:
    """WORKSPACE/builds/NAME."""

    root: Path
    suffix: str = SINGLE_FILE
    """How its checkpoints' names end: empty where the base is a diffusers folder, as they are."""

    @property
    def recipe(self) -> Path:
        """The recipe as run, with every default spelled out."""
        return self.root / "recipe.toml"

    @property
    def stop(self) -> Path:
        """A file that a person puts here to make training save and end."""
        return self.root / "STOP"

    @property
    def more(self) -> Path:
        """How many rounds `urushi run --more` added to the recipe's: {"rounds": N}."""
        return self.root / "more.json"

    @property
    def ledger(self) -> Path:
        """build.json: everything per round."""
        return self.root / "build.json"

    @property
    def split(self) -> Path:
        """The held-out manifest: pictures, timesteps, noise seeds."""
        return self.root / "heldout.json"

    @property
    def anchor(self) -> Path:
        """The manifest of the pictures that the model should not forget."""
        return self.root / "anchor.json"

    @property
    def refit(self) -> Path:
        """All strengths fitted together after the last round."""
        return self.root / "refit.json"

    @property
    def baseline(self) -> Path:
        """The training of the single LoRA that the rounds are compared with."""
        return self.root / "baseline"

    @property
    def baseline_row(self) -> Path:
        """What came of it: BaselineRow."""
        return self.root / "baseline.json"

    @property
    def final(self) -> Path:
        return self.root / f"final{self.suffix}"

    @property
    def final_samples(self) -> Path:
        """Pictures of the final checkpoint, where it is not the last round's."""
        return self.root / "samples"

    @property
    def final_lora(self) -> Path:
        return self.root / "final.lora.safetensors"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.root / "README.md"

    def round(self, number: int) -> RoundFolder:
        """Round `number`, from 1; 0 is the origin's folder, which holds its samples."""
        return RoundFolder(self.root / "rounds" / f"{number:02d}", self.suffix)


@dataclass(frozen=True)
class Workspace:
    """The folder that holds all datasets and builds."""

    root: Path

    def dataset(self, name: str) -> DatasetFolder:
        return DatasetFolder(self.root / "datasets" / name)

    def build(self, name: str, suffix: str = SINGLE_FILE) -> BuildFolder:
        return BuildFolder(self.root / "builds" / name, suffix)

    @property
    def flow_runs(self) -> Path:
        """One lock for each scheduled run, held by the process that works for it."""
        return self.root / "flow_runs"

    def comparison(self, fingerprint: str) -> Path:
        """One model's pictures of a `urushi compare`."""
        return self.root / "compare" / fingerprint

    @property
    def identities(self) -> Identities:
        """Remembered digests of large files."""
        return Identities(self.root / "identities.json")
