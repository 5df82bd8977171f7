"""A mix for a person: arguments → a recipe of one step, the mix with a bar, and what it did."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from merge.errors import listed
from merge.mix import MixReport, mix
from merge.mix_recipe import MixRecipe, Step, amount, difference, sum_of_two, weighted
from merge.mix_toml import read_recipe
from pipeline.artefacts.files import write_json
from pipeline.errors import RequestError
from urushi.identities import Remembered
from urushi.merge import refuse_report
from urushi.progress import Counted, Terminal
from urushi.table import size

STEP = "mix"


@dataclass(frozen=True)
class Asked:
    """What a person may say of a mix; see `urushi mix --help`."""

    models: tuple[Path, ...] = ()
    third: Path | None = None
    mode: Literal["sum", "difference"] | None = None
    alpha: float | None = None
    weights: str | None = None
    blocks: str | None = None
    te: float | None = None
    vae: str | None = None
    recipe: Path | None = None
    dtype: str | None = None

    def to_recipe(self) -> MixRecipe:
        """Raises RequestError, MergeError: what is said does not fit together."""
        if self.recipe is not None:
            self._refuse_beside_recipe()
            found = read_recipe(self.recipe)
            return found if self.dtype is None else replace(found, dtype=self.dtype)
        mode = self.mode or ("sum" if self.third is None else "difference")
        self._refuse_misfit(mode)
        paths = self.models if self.third is None else (*self.models, self.third)
        models = dict(zip(ascii_uppercase, paths, strict=False))
        whose, share = self._vae(models)
        if whose is not None and whose not in models:
            models["vae"] = Path(whose)
            whose = "vae"
        return MixRecipe(models, (self._step(mode, tuple(models), share),), whose, self.dtype)

    def _step(self, mode: str, names: tuple[str, ...], vae: float | None) -> Step:
        if self.weights is not None:
            return weighted(STEP, names[: len(self.models)], _numbers(self.weights))
        share = amount(self.alpha, self.blocks, te=self.te, vae=vae)
        first, second, *others = names
        if mode == "difference":
            return difference(STEP, first, second, others[0], share)
        return sum_of_two(STEP, first, second, share)

    def _vae(self, models: Mapping[str, Path]) -> tuple[str | None, float | None]:
        """Whose VAE, or the VAE's alpha."""
        if self.vae is None or self.vae in models:
            return self.vae, None
        try:
            number = float(self.vae)
        except ValueError:
            return self.vae, None
        if self.weights is not None:
            raise RequestError("--vae is a number beside --weights, which say all. Name a model.")
        return None, number

    def _refuse_beside_recipe(self) -> None:
        said = [
            _option(field.name)
            for field in fields(self)
            if field.name not in ("recipe", "dtype") and getattr(self, field.name) not in (None, ())
        ]
        if said:
            raise RequestError(
                f"{listed(said)} beside --recipe: the recipe says all but --dtype. Write it there."
            )

    def _refuse_misfit(self, mode: str) -> None:
        if (mode == "difference") != (self.third is not None):
            raise RequestError(
                "A difference is A + alpha·(B - C): name C with --with."
                if mode == "difference"
                else "--with C is for a difference, and --mode is sum. Leave one of them out."
            )
        if self.weights is not None:
            beside = [
                _option(name)
                for name in ("third", "alpha", "blocks", "te")
                if getattr(self, name) is not None
            ]
            if beside:
                raise RequestError(f"{listed(beside)} beside --weights, which say all.")
            if len(self.models) > len(ascii_uppercase):
                raise RequestError(f"{len(self.models)} models are more than the letters A to Z.")
        elif len(self.models) != 2:
            raise RequestError(
                f"{len(self.models)} models are named. Name two, A and B; or more with --weights; "
                "or a recipe with --recipe FILE.toml."
            )


def _option(field: str) -> str:
    return {"models": "models", "third": "--with"}.get(field, f"--{field}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--weights {text!r} are not numbers with commas between, such as 0.5,0.3,0.2."
        ) from None


def mix_files(
    asked: Asked, out: Path, force: bool, report: Path | None, workspace: Path
) -> MixReport:
    """Mixes and prints what it did.

    Raises:
        RequestError: what is asked does not fit together.
        MergeError: see `merge.mix.mix`.
    """
    recipe = asked.to_recipe()
    paths = list(recipe.models.values())
    refuse_report(report, (*paths, out, *([asked.recipe] if asked.recipe else [])))
    known = Remembered(workspace, paths)
    with Counted(Terminal(), "mix", "tensors") as bar:
        done = mix(recipe, out, on_tensor=bar.told, identities=known, force=force)
    known.keep({recipe.models[name]: digest for name, digest in done.models.items()})
    print(render(done, recipe))
    if report is not None:
        write_json(report, content(done, recipe))
        print(f"report: {report}")
    return done


def content(report: MixReport, recipe: MixRecipe) -> dict[str, Any]:
    """The report file: the mix's own, with what went in by path and hash, and the steps."""
    models = {
        name: {"path": str(path), "blake3": report.models[name]}
        for name, path in recipe.models.items()
    }
    inputs = {"models": models, "steps": recipe.described(), "vae": recipe.vae}
    return {**report.to_json(), "inputs": inputs}


def render(report: MixReport, recipe: MixRecipe) -> str:
    """The report for a person."""
    single = ", ".join(f"{count} of {name}" for name, count in report.single.items())
    return "\n".join(
        [
            f"{report.out}: {report.tensors} tensors, {size(report.size)}",
            f"{report.mixed} mixed" + (f"; {single} alone." if single else "."),
            *(f"{name}: {path}" for name, path in recipe.models.items()),
            *(f"warning: {warning}" for warning in report.warnings),
        ]
    )
