"""The anchor set: pictures of what the model should not forget, judged and never trained on."""

from pipeline.artefacts.job import Job
from pipeline.models.places import cache_folders
from pipeline.rounds.pictures import Pictures, usable
from pipeline.rounds.split import draw_anchor, frozen_split


def anchor_of(job: Job) -> Pictures | None:
    """The build's anchor pictures, frozen in builds/NAME/anchor.json; None where it has none.

    Raises:
        RequestError: the anchor's dataset is not cached yet, or has too few pictures.
    """
    rounds = job.recipe.rounds
    if rounds.anchor is None:
        return None
    dataset = job.dataset_of(rounds.anchor)
    folders = cache_folders(job, dataset)
    drawn = draw_anchor(
        dataset.name,
        folders.latents_fingerprint,
        usable(job, dataset, folders),
        rounds.anchor_pictures,
        rounds.held_out_timesteps,
        job.recipe.seed,
    )
    return Pictures(folders, frozen_split(job.folder.anchor, drawn), ())
