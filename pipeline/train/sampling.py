"""Sample pictures of a round while it trains: [preview]'s prompts, by the network as it is now.

Of every sampled step folder/step-000100-00.png, -01.png, …, in the prompts' order, beside the
round's curves, which hold them too. Nothing is drawn from torch's own generator and what is trained
stays as it is: with samples and without, a LoRA has the same bytes.
"""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from pipeline.artefacts.files import atomic, remove
from pipeline.errors import memory_refused
from pipeline.models.load import load_sampler, load_text, load_vae
from pipeline.models.pictures import decoded, initial_noise, rescale_of, to_image
from pipeline.models.text import TextStack
from pipeline.recipe.shots import Shot, sample_size, shots
from pipeline.size import Size
from pipeline.train.ahead import moved
from pipeline.train.conditioning import Added, Conditioning
from pipeline.train.run import Run

FOLDER = "samples"


class Samples:
    """What `run` draws every [train].sample_every steps, in its training's folder.

    Those of a training that begins anew take the place of an earlier one's.
    """

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        """`say` is told where there is no memory for pictures."""
        self._run, self._say = run, say
        recipe = run.recipe
        self._every = recipe.train.sample_every or 0
        self._base, self._preview = recipe.base, recipe.preview
        self._shots, self._size = shots(recipe.preview), sample_size(recipe)
        self._told: list[Conditioning] = []
        """Of each shot: (2, …), without the prompt and with it. Empty where text encoders learn."""
        self._folder = run.training.folder / FOLDER
        if run.step == 0:
            remove(self._folder)

    def due(self) -> bool:
        """Whether to draw after the step that was taken last."""
        return bool(self._every and self._run.step % self._every == 0)

    def draw(self) -> list[Image.Image]:
        """Draws and writes all of them, picture by picture: memory is what training leaves.

        Where that is too little, there are no more samples from then on; the training goes on.
        """
        try:
            pictures = self._drawn()
        except (RuntimeError, MemoryError) as error:
            if not memory_refused(error):
                raise
            self._every = 0
            self._say(
                f"There is no memory beside the training for samples of {self._size}, and none are "
                "drawn from here on. Set a smaller width and height in [preview]."
            )
            return []
        for number, picture in enumerate(pictures):
            path = self._folder / f"step-{self._run.step:06d}-{number:02d}.png"
            with atomic(path) as temporary:
                picture.save(temporary, format="PNG")
        return pictures

    def _drawn(self) -> list[Image.Image]:
        run = self._run
        device = run.accelerator.device
        vae = load_vae(self._base).to(device)
        scheduler = load_sampler(self._base)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = Size(self._size.width // factor, self._size.height // factor)
        pictures = []
        run.network.eval()
        try:
            with run.learner.judged(), torch.no_grad(), run.accelerator.autocast():
                for shot, told in zip(self._shots, self._said(), strict=True):
                    noise = initial_noise(shot.seed, vae.config.latent_channels, side).to(device)
                    latents = self._denoised(noise, moved(told, device), scheduler)
                    with torch.autocast(device.type, enabled=False):
                        pictures.append(to_image(decoded(vae, latents)[0]))
        finally:
            run.network.train()
        return pictures

    def _said(self) -> list[Conditioning]:
        """What the network is told of each shot, by the text encoders as they are now."""
        live = self._run.network.text
        if live is not None:
            return [self._read(live, shot) for shot in self._shots]
        if not self._told:
            text = load_text(self._base, self._run.training.checkpoint)
            self._told = [self._read(text, shot) for shot in self._shots]
        return self._told

    def _read(self, text: TextStack, shot: Shot) -> Conditioning:
        """What the network is told of a shot: a whole picture of its own size."""
        height, width = self._size.height, self._size.width
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * 2).float()
        hidden, pooled = text.encode([self._preview.negative, shot.prompt])
        return Conditioning(hidden, None if pooled is None else Added(pooled, sizes))

    def _denoised(self, noise: Tensor, told: Conditioning, scheduler: DDIMScheduler) -> Tensor:
        """(1, C, h, w) latents by DDIM with classifier-free guidance (Ho and Salimans 2022, arXiv
        2207.12598), as diffusers' pipelines do it."""
        scheduler.set_timesteps(self._preview.steps, device=noise.device)
        latents, rescale = noise, rescale_of(scheduler)
        for timestep in scheduler.timesteps:
            said = self._run.network(latents.expand(2, -1, -1, -1), timestep.expand(2), told)
            without, wanted = said.float().chunk(2)
            guided = without + self._preview.guidance * (wanted - without)
            if rescale:
                # Lin et al. 2023, arXiv 2305.08891, section 3.4.
                spread = wanted.std() / guided.std()
                guided = guided * (rescale * spread + 1 - rescale)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        return latents
