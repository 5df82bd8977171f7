# ruff: noqa: E501 - tables of a recipe's lines and the sentence they earn
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import RecipeError, RequestError
from pipeline.recipe import BuildRecipe, DatasetRecipe, load_any, load_build, load_dataset
from pipeline.recipe.load import require_valid

WriteRecipe = Callable[..., Path]
BOORU = 'name = "set"\n[download]\nsite = "danbooru"\ntags = "cat"\n'


def said(path: Path) -> str:
    """The error's words after the file's name."""
    with pytest.raises(RecipeError) as caught:
        load_any(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    return text.removeprefix(f"{path}:").strip()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('[rounds]\nstrenght = "auto"\n', "[rounds].strenght is not a known key. Did you mean strength?"),
        ("[lora]\nxyzzy = 1\n", "[lora].xyzzy is not a known key. Known here: rank, alpha, conv_rank, conv_alpha, rslora, dora, dropout, rank_dropout, module_dropout, max_norm, init, preset, blocks, block_ranks, block_conv_ranks."),
        ("[[round]]\ndatset = 'x'\n", "[[round]] number 1, datset is not a known key. Did you mean dataset?"),
        ("[[round]]\n[[round]]\nstep = 3\n", "[[round]] number 2, step is not a known key. Did you mean steps?"),
        ("[previews]\nseed = 1\n", "previews is not a known key. Did you mean preview?"),
        ("[rounds]\nstrength = 'automatic'\n", "[rounds].strength should be 'auto' or 'damped', or a number, or a list (it is 'automatic')."),
        ("[rounds]\nstrength = [0.7, 3]\n", "[rounds].strength[1] should be less than or equal to 2 (it is 3)."),
        ("[rounds]\nstrength = -1\n", "[rounds].strength should be greater than or equal to 0 (it is -1)."),
        ("[rounds]\nstrength = []\n", "[rounds].strength should not be empty."),
        ("[rounds]\nepochs = []\n", "[rounds].epochs should not be empty."),
        ("[rounds]\nsteps = [0]\n", "[rounds].steps[0] should be greater than or equal to 1 (it is 0)."),
        ("[rounds]\nepochs = 6\n", "[rounds].epochs should be a list, in [ ] (it is 6)."),
        ("[rounds]\nlearning_rate = nan\n", "[rounds].learning_rate should be a finite number (it is nan)."),
        ("[rounds]\ncount = 0\n", "the recipe: has no rounds: set [rounds].count or add a [[round]] table."),
        ("[round]\nepochs = 3\n", "[round] should be a list of tables: write [[round]]."),
        ("[[round]]\nstrength = 'x'\n", "[[round]] number 1, strength should be 'auto' or 'damped', or a number (it is 'x')."),
        ("[[round]]\ntrain = { optimiser = 'adamw' }\n", "the recipe: [[round]] number 1, train: optimiser is not a known key. Did you mean optimizer?"),
        ("[train]\nmin_snr_gamma = 5\n[[round]]\ntrain = { debiased = true }\n", "the recipe: [[round]] number 1, train: [train] with it: has min_snr_gamma and debiased, which both weigh timesteps; keep one of them."),
        ("[resize]\nresolution = 200\n", "[resize]: needs min_side <= resolution <= max_side, and has 320, 200, 1536."),
        ("[resize]\nstep = 60\n", "[resize].step should be a multiple of 8 (it is 60)."),
        ("[train]\noptimizer = 'adamw8bits'\n", "[train].optimizer: 'adamw8bits' is no optimizer known here. Nearest: adamw8bit, adam8bit, pagedadamw8bit. Any other is named by its dotted path, \"package.module.Class\"."),
        ("[train]\noptimizer = 'a..b'\n", "[train].optimizer: 'a..b' is no dotted path such as \"package.module.Class\"."),
        ("[train]\nscheduler = 'cosin'\n", "[train].scheduler should be 'constant', 'constant_with_warmup', 'linear', 'cosine', 'cosine_with_restarts' or 'polynomial' (it is 'cosin'). Did you mean 'cosine'?"),
        ("[train]\nbetas = []\n", "[train].betas should not be empty."),
        ("[rounds]\nlearning_rate = 0\n", "[rounds].learning_rate should be greater than 0 (it is 0)."),
        ("[train]\nbetas = [0.9, 1.0]\n", "[train].betas[1] should be less than 1 (it is 1.0)."),
        ("[preview]\nprompts = []\n", "[preview].prompts should not be empty."),
    ],
)  # fmt: skip
def test_a_bad_build_recipe_is_told_in_a_sentence(
    write_recipe: WriteRecipe, lines: str, sentence: str
) -> None:
    assert said(write_recipe(lines)) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "set"\n', "the recipe: needs exactly one of [download] and [folder]."),
        (f'{BOORU}[folder]\npath = "."\n', "the recipe: needs exactly one of [download] and [folder]."),
        (f'{BOORU}[exclude]\nmd5s = ["ab"]\n', "[exclude].md5s: 'ab' is no md5, which has 32 hexadecimal digits."),
        (f'{BOORU}[exclude]\nartist = ["x"]\n', "[exclude].artist is not a known key. Did you mean artists?"),
        (f'{BOORU}ratings = ["generl"]\n', "[download].ratings[0] should be 'general', 'sensitive', 'questionable' or 'explicit' (it is 'generl'). Did you mean 'general'?"),
        (f'{BOORU}host = "localhost:80"\n', '[download].host: must be an address such as "http://127.0.0.1:8642".'),
        (BOORU.replace('"set"', '"My Set"'), "name should be lower-case letters, digits, _ and -, a letter or digit first, at most 64 (it is 'My Set')."),
        (BOORU.replace('"set"', "3"), "name should be a text, in quotes (it is 3)."),
        (f'{BOORU}[caption]\nquality = [[6, "a"], [60, "b"]]\n', "[caption].quality: scores must fall from the first word to the last."),
        (f'{BOORU}[caption]\nvariation = {{ separator = "a, b" }}\n', "[caption].variation.separator: must be one word without a comma (it is 'a, b')."),
        ('name = "set"\ndownload = "cats"\n', "[download] should be a table of keys (it is 'cats')."),
        ('name = "set"\n[folder]\npath = ""\n', '[folder].path: is empty; write "." for the recipe\'s own folder.'),
        ("[folder]\npath = '.'\n", "name is missing."),
        ('name = "set"\n[download]\nsite = "danbooru"\ntags = ""\nlimits = 3\n', "[download].tags should not be empty (it is '').\n  [download].limits is not a known key. Did you mean limit?"),
    ],
)  # fmt: skip
def test_a_bad_dataset_recipe_is_told_in_a_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "set.toml"
    path.write_text(text)
    assert said(path) == sentence


def test_files_that_are_no_recipes(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    def error(path: Path) -> str:
        with pytest.raises(RecipeError) as caught:
            load_any(path)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "There is no recipe" in error(tmp_path / "none.toml")
    assert "urushi new" in error(tmp_path / "none.toml")
    assert "is a folder" in error(tmp_path)
    (tmp_path / "a.toml").write_text("x = \n")
    assert "is not valid TOML" in error(tmp_path / "a.toml") and "line 1" in error(
        tmp_path / "a.toml"
    )
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00\x01")
    assert "is not a text file" in error(tmp_path / "b.toml")
    build = write_recipe()
    with pytest.raises(RecipeError, match="is a build recipe"):
        load_dataset(build)
    with pytest.raises(RecipeError, match="is a dataset recipe"):
        load_build(build.with_name("pictures.toml"))


def test_paths_are_meant_from_the_recipes_folder(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = write_recipe()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_build(Path("..") / build.name)
    assert recipe.base.checkpoint == tmp_path.resolve() / "base.safetensors"
    assert load_dataset(recipe.dataset.recipe).folder is not None
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    build.write_text(build.read_text().replace("base.safetensors", "~/models/base.safetensors"))
    assert load_build(build).base.checkpoint == tmp_path / "home/models/base.safetensors"
    build.write_text(build.read_text().replace("~/models", "/models"))
    assert load_build(build).base.checkpoint == Path("/models/base.safetensors")


def test_a_rounds_own_accelerate_config_is_meant_from_there_too(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    build = write_recipe()
    plain = build.read_text()
    for path, wanted in (
        ("two.yaml", tmp_path.resolve() / "two.yaml"),
        ("/a.yaml", Path("/a.yaml")),
    ):
        build.write_text(f'{plain}\n[[round]]\ntrain = {{ accelerate_config = "{path}" }}\n')
        assert load_build(build).law()[-1].train.accelerate_config == wanted
    build.write_text(f'{plain}\n[[round]]\ntrain = {{ accelerate_config = "" }}\n')
    assert "accelerate_config" in said(build) and "is empty" in said(build)


def test_recipes_are_frozen(write_recipe: WriteRecipe) -> None:
    recipe = load_build(write_recipe())
    with pytest.raises(ValidationError, match="frozen"):
        recipe.rounds.count = 9  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 9  # type: ignore[misc]


@pytest.mark.parametrize("kind", [BuildRecipe, DatasetRecipe])
def test_every_key_says_what_it_means(kind: type[BuildRecipe] | type[DatasetRecipe]) -> None:
    """The JSON Schema describes every number of every section: units live in docstrings."""
    schema = kind.model_json_schema()
    json.dumps(schema)
    for name, section in schema["$defs"].items():
        assert section.get("description"), name
        assert section["additionalProperties"] is False
    assert "pixels" in json.dumps(BuildRecipe.model_json_schema()["$defs"]["Resize"])


def test_a_recipe_survives_being_spelled_out(write_recipe: WriteRecipe) -> None:
    """What the build folder keeps, every default spelled out, loads as the same recipe."""
    recipe = load_build(write_recipe("[rounds]\nstrength = [0.7]\n[[round]]\nsteps = 3\n"))
    spelled = recipe.model_dump(mode="json", exclude_none=True)
    assert BuildRecipe.model_validate(spelled) == recipe


def test_errors_are_requests() -> None:
    assert issubclass(RecipeError, RequestError)


def test_an_optimizer_may_be_spelled_as_its_class_is(write_recipe: WriteRecipe) -> None:
    for spelled in ("AdamW8bit", "PagedAdamW8bit", "DAdaptAdam", "ScheduleFreeAdamW", "prodigy"):
        recipe = load_build(write_recipe(f'[train]\noptimizer = "{spelled}"\n'))
        assert recipe.train.optimizer == spelled.lower()


def test_a_recipe_that_was_changed_must_still_be_one(write_recipe: WriteRecipe) -> None:
    recipe = load_build(write_recipe("[lora]\nmax_norm = 1.0\n"))
    require_valid(recipe)
    train = recipe.train.model_copy(update={"ema_decay": 0.9})
    with pytest.raises(RecipeError, match=r"would be no recipe: .*max_norm with .*ema_decay"):
        require_valid(recipe.model_copy(update={"train": train}))
