"""Procedural pictures: a scene (figures, background, style) into pixels, with the tags that say it.

Two styles share one vocabulary. `plain` is what the tiny base was taught: flat figures on pale
paper. `lacquer` is what the demo teaches it: gold outlines on deep lacquer, after maki-e boxes,
with two characters (a robot, a cat) that the base has never drawn.

Everything is a pure function of a numpy Generator, so a seed names a picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw

T = TypeVar("T")
RGB = tuple[int, int, int]
Style = Literal["plain", "lacquer"]

COLOURS: dict[str, RGB] = {
    "red": (222, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 45),
    "green": (50, 165, 75),
    "blue": (45, 95, 215),
    "purple": (140, 65, 180),
    "pink": (250, 140, 185),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "moon")
CHARACTERS = ("robot", "cat")
"""Motifs that only the lacquer style has."""

PAPERS: dict[str, RGB] = {
    "white": (250, 250, 248),
    "grey": (190, 192, 196),
    "beige": (238, 222, 190),
    "aqua": (180, 225, 232),
}
LACQUERS: dict[str, RGB] = {
    "lacquer": (120, 75, 100),
    "black": (68, 66, 84),
}
"""Words that the tokenizer knows and the base has never met, and no figure's colour: what such a
word means is learned as a ground."""
GOLD: RGB = (226, 182, 84)
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Figure:
    """One motif: its centre in shares of width and height, its radius of the short side."""

    motif: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `background` is a key of PAPERS or LACQUERS, by style."""

    style: Style
    figures: tuple[Figure, ...]
    background: str

    def general_tags(self) -> list[str]:
        """Booru tags of category general, underscored, the count first."""
        count = len(self.figures)
        tags = ["1figure" if count == 1 else f"{count}figures"]
        tags += [f"{f.colour}_{f.motif}" for f in self.figures]
        tags.append(f"{self.background}_background")
        return tags


def plain_scene(rng: np.random.Generator) -> Scene:
    """A scene in the base's style: one or two shapes on pale paper."""
    return Scene("plain", _figures(rng, SHAPES), _pick(rng, tuple(PAPERS)))


def lacquer_scene(rng: np.random.Generator, character_share: float = 0.4) -> Scene:
    """A scene in the demo's style; `character_share` of the scenes show a robot or a cat."""
    motifs = CHARACTERS if rng.random() < character_share else SHAPES
    return Scene("lacquer", _figures(rng, motifs), _pick(rng, tuple(LACQUERS)))


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _figures(rng: np.random.Generator, motifs: tuple[str, ...]) -> tuple[Figure, ...]:
    colours = tuple(COLOURS)
    if rng.random() < 0.75:
        jitter = rng.uniform(-0.08, 0.08, 2)
        return (
            Figure(
                _pick(rng, motifs),
                _pick(rng, colours),
                0.5 + float(jitter[0]),
                0.5 + float(jitter[1]),
                float(rng.uniform(0.28, 0.38)),
            ),
        )
    first, second = rng.permutation(len(colours))[:2]
    jitter = rng.uniform(-0.04, 0.04, (2, 2))
    radius = rng.uniform(0.17, 0.21, 2)
    return tuple(
        Figure(
            _pick(rng, motifs),
            colours[int(colour)],
            0.27 + 0.46 * i + float(jitter[i, 0]),
            0.5 + float(jitter[i, 1]),
            float(radius[i]),
        )
        for i, colour in enumerate((first, second))
    )


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB picture of `width` x `height` pixels, anti-aliased."""
    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    short = min(w, h)
    lacquer = scene.style == "lacquer"
    image = Image.new("RGB", (w, h), (LACQUERS if lacquer else PAPERS)[scene.background])
    canvas = ImageDraw.Draw(image)
    for figure in scene.figures:
        # Horizontal positions follow the width so that pairs spread over wide pictures.
        cx, cy, r = figure.x * w, figure.y * h, figure.radius * short
        _figure(canvas, figure, cx, cy, r, outline=short / 26 if lacquer else 0.0)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _figure(
    canvas: ImageDraw.ImageDraw, figure: Figure, cx: float, cy: float, r: float, outline: float
) -> None:
    fill = COLOURS[figure.colour]
    for grow, colour in ((outline, GOLD), (0.0, fill)) if outline else ((0.0, fill),):
        MOTIFS[figure.motif](canvas, cx, cy, r + grow, colour)
    if figure.motif in CHARACTERS:
        _face(canvas, figure.motif, cx, cy, r)


def _circle(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    canvas.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)


def _square(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    side = r * 0.86
    canvas.rectangle((cx - side, cy - side, cx + side, cy + side), fill=fill)


def _triangle(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    points = [(cx, cy - r), (cx + r * 0.95, cy + r * 0.75), (cx - r * 0.95, cy + r * 0.75)]
    canvas.polygon(points, fill=fill)


def _star(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    points = []
    for i in range(10):
        radius = r * (1.08 if i % 2 == 0 else 0.48)
        angle = math.pi * i / 5 - math.pi / 2
        points.append((cx + radius * math.cos(angle), cy + radius * math.sin(angle)))
    canvas.polygon(points, fill=fill)


def _heart(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    # The classic parametric heart, 16 units wide and 29 high.
    points = []
    for i in range(64):
        t = 2 * math.pi * i / 64
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((cx + x / 16 * r, cy - (y + 2.5) / 16 * r))
    canvas.polygon(points, fill=fill)


def _moon(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    # A crescent as one polygon, the outer arc and back along the inner circle, so that it can lie
    # on any ground. The circles (radius 1 at 0, radius q at d) meet at the angles a and b.
    q, d = 0.8, 0.55
    meet = (d * d + 1 - q * q) / (2 * d)
    a, b = math.acos(meet), math.acos((meet - d) / q)
    outer = [(math.cos(t), math.sin(t)) for t in np.linspace(a, 2 * math.pi - a, 48)]
    inner = [(d + q * math.cos(t), q * math.sin(t)) for t in np.linspace(2 * math.pi - b, b, 48)]
    canvas.polygon([(cx + r * (x + 0.1), cy + r * y) for x, y in outer + inner], fill=fill)


def _robot(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    canvas.rectangle((cx - r * 0.75, cy - r * 0.7, cx + r * 0.75, cy + r * 0.15), fill=fill)
    canvas.rectangle((cx - r * 0.5, cy + r * 0.15, cx + r * 0.5, cy + r), fill=fill)
    canvas.rectangle((cx - r * 0.95, cy + r * 0.3, cx + r * 0.95, cy + r * 0.55), fill=fill)
    canvas.rectangle((cx - r * 0.1, cy - r * 1.05, cx + r * 0.1, cy - r * 0.7), fill=fill)


def _cat(canvas: ImageDraw.ImageDraw, cx: float, cy: float, r: float, fill: RGB) -> None:
    canvas.ellipse((cx - r, cy - r * 0.65, cx + r, cy + r * 0.95), fill=fill)
    for side in (-1, 1):
        ear = [
            (cx + side * r * 0.95, cy - r * 1.05),
            (cx + side * r * 0.95, cy + r * 0.1),
            (cx + side * r * 0.15, cy - r * 0.5),
        ]
        canvas.polygon(ear, fill=fill)


def _face(canvas: ImageDraw.ImageDraw, motif: str, cx: float, cy: float, r: float) -> None:
    ink: RGB = (20, 16, 20)
    eye = r * 0.17
    y = cy - r * 0.3 if motif == "robot" else cy
    for side in (-1, 1):
        x = cx + side * r * 0.38
        if motif == "robot":
            canvas.rectangle((x - eye, y - eye, x + eye, y + eye), fill=ink)
        else:
            canvas.ellipse((x - eye, y - eye * 1.3, x + eye, y + eye * 1.3), fill=ink)
    if motif == "cat":
        canvas.polygon(
            [(cx - eye, cy + r * 0.35), (cx + eye, cy + r * 0.35), (cx, cy + r * 0.55)], fill=ink
        )


Painter = Callable[[ImageDraw.ImageDraw, float, float, float, RGB], None]
MOTIFS: dict[str, Painter] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "robot": _robot,
    "cat": _cat,
}
