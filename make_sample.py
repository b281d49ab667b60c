"""Write the sample dataset in the MVTec AD layout, with textures. The parts are drawn, the textures are real images.

Every image is drawn separately, with random position, angle, illumination and noise. The test anomalies use neither the
textures nor the masks of the anomalies that are synthesized for training. All images are gray like the parts: a colored
anomaly would be too easy to detect.
"""

import os
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import skimage

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave this folder out

from data.image_io import read_image
from evaluation.image_metrics import image_metrics
from runtime.cli import Parser, path, run
from runtime.errors import UserError
from runtime.files import naming

VERSION = 4
SIZE = 128  # height and width of every image in pixels
N_TRAIN, N_GOOD, N_PER_DEFECT, N_PER_TEXTURE = 200, 24, 8, 10  # numbers of images
CONTRAST = 42  # gray levels, approximate difference between an anomaly and the surface around it
EXPOSURE = (0.82, 1.18)  # range of the factor of an image's brightness
GRAIN = 2.5  # gray levels, scale of the noise
MIN_DEFECT = 80  # smallest number of visible pixels of an anomaly
SUPER = 4  # shapes are drawn this many times larger and then averaged, for anti-aliased outlines
Painted = tuple[np.ndarray, np.ndarray]  # a surface with its anomaly, and the anomaly's opacity in [0, 1]
FOREIGN = ("chelsea.png", "coffee.png")
TEXTURES = ("grass.png", "camera.png", "retina.jpg", "rocket.jpg", "hubble_deep_field.jpg", "astronaut.png")
README = """\
DRAEM sample dataset, version {version}, written by make_sample.py in the MVTec AD layout.
The parts are drawn. Made from photographs in scikit-image's wheel, turned gray; licenses as skimage.data states them:
  foreign pieces  chelsea.png: CC0 (Stefan van der Walt); coffee.png: CC0 (Rachel Michetti)
  textures        grass.png: CC0; camera.png: CC0 (Lav Varshney); retina.jpg: CC0 (Mikael Haggstrom);
                  rocket.jpg: public domain (SpaceX); hubble_deep_field.jpg, astronaut.png: public domain (NASA)
Parts and anomalies are drawn, not photographed: scores on this sample show that the code works, no more.
"""


def load_grey(name: str) -> np.ndarray:
    """Image `name` of scikit-image's data in gray: (H, W) float32 in [0, 255]."""
    file = Path(skimage.data_dir) / name  # type: ignore[attr-defined]
    image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_GRAYSCALE) if file.is_file() else None
    if image is None:
        raise UserError("scikit-image", f"has no image {name}", "reinstall it with pip")
    return image.astype(np.float32)


def crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Square at a random position of an image, mirrored at random: (side, side) float32."""
    y, x = (rng.integers(extent - side + 1) for extent in image.shape)
    return image[y : y + side, x : x + side][:, :: rng.choice([-1, 1])].copy()


def soften(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur an image with a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def mix(below: np.ndarray, above: np.ndarray | float, opacity: np.ndarray) -> np.ndarray:
    """Blend two images; opacity, in [0, 1], is the weight of `above`."""
    return below * (1 - opacity) + above * opacity


def shrink(canvas: np.ndarray) -> np.ndarray:
    """Average a canvas, uint8, SUPER times larger than an image, to an opacity in [0, 1], (SIZE, SIZE) float32."""
    return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def pose(rng: np.random.Generator, degrees: float, pixels: float, zoom: float) -> np.ndarray:
    """Random transform (2, 3) from drawing units to pixels of a canvas; maximum rotation, shift and change of size."""
    angle, scale = np.deg2rad(rng.uniform(-degrees, degrees)), rng.uniform(1 - zoom, 1 + zoom) * SIZE * SUPER / 2
    center = SIZE * SUPER / 2 + rng.uniform(-pixels, pixels, 2) * SUPER
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([scale * rotation, center])


class Canvas:
    """A gray canvas, SUPER times larger than an image. Coordinates are drawing units, -1 to 1, mapped by a pose.

    Args:
        place: pose, see `pose`. gray: background, from 0 to 255.
    """

    def __init__(self, place: np.ndarray, gray: int):
        self.place, self.scale = place, float(np.hypot(*place[:, 0]))
        self.pixels = np.full((SIZE * SUPER, SIZE * SUPER), gray, np.uint8)

    def _at(self, point: tuple[float, float]) -> tuple[int, int]:
        x, y = self.place[:, :2] @ np.array(point) + self.place[:, 2]
        return round(x * 16), round(y * 16)  # OpenCV expects sixteenths of a pixel (shift = 4)

    def disc(self, center: tuple[float, float], radius: float, gray: int) -> None:
        """Draw a filled circle."""
        cv2.circle(self.pixels, self._at(center), round(radius * self.scale * 16), gray, -1, cv2.LINE_8, 4)

    def box(self, x0: float, y0: float, x1: float, y1: float, gray: int) -> None:
        """Draw a filled rectangle."""
        corners = [self._at(point) for point in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        cv2.fillPoly(self.pixels, [np.array(corners, np.int32)], gray, cv2.LINE_8, 4)

    def track(self, points: list[tuple[float, float]], width: float, gray: int) -> None:
        """Draw connected line segments with round ends."""
        for one, other in pairwise(points):
            cv2.line(self.pixels, self._at(one), self._at(other), gray, round(width * self.scale), cv2.LINE_8, 4)
        for point in points:
            self.disc(point, width / 2, gray)


def flange(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a round flange with six bolt holes: gray values and opacity of the part, both (SIZE, SIZE) float32."""
    place = pose(rng, 10, 3, 0.03)
    canvas, part = Canvas(place, 28), Canvas(place, 0)
    for radius, gray in ((0.86, 165), (0.80, 140)):
        canvas.disc((0, 0), radius, gray)
    for angle in np.arange(6) * np.pi / 3:
        center = (0.62 * np.cos(angle), 0.62 * np.sin(angle))
        canvas.disc(center, 0.115, 190)
        canvas.disc(center, 0.085, 40)
    for radius, gray in ((0.44, 185), (0.40, 110), (0.34, 170), (0.22, 34)):
        canvas.disc((0, 0), radius, gray)
    part.disc((0, 0), 0.84, 255)
    part.disc((0, 0), 0.22, 0)
    return 255 * shrink(canvas.pixels), shrink(part.pixels)


TRACKS = (
    [(-0.7, -0.55), (-0.35, -0.55), (-0.1, -0.3)],
    [(-0.7, -0.35), (-0.45, -0.35), (-0.3, -0.2)],
    [(0.7, -0.5), (0.45, -0.5), (0.3, -0.28)],
    [(0.7, 0.5), (0.4, 0.5), (0.22, 0.3)],
    [(-0.7, 0.45), (-0.4, 0.45), (-0.2, 0.3)],
    [(-0.7, 0.62), (0.1, 0.62), (0.3, 0.45)],
    [(0.7, -0.7), (-0.2, -0.7)],
    [(0.7, 0.1), (0.42, 0.1)],
    [(-0.7, 0.1), (-0.42, 0.1)],
)


def board(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a circuit board with a chip: gray values and opacity of the part, both (SIZE, SIZE) float32."""
    place = pose(rng, 4, 3, 0.02)
    canvas, part = Canvas(place, 30), Canvas(place, 0)
    canvas.box(-0.86, -0.86, 0.86, 0.86, 95)
    for track in TRACKS:
        canvas.track(track, 0.045, 150)
        canvas.disc(track[0], 0.075, 205)
        canvas.disc(track[0], 0.03, 40)
    canvas.box(-0.36, -0.30, 0.36, 0.34, 52)
    canvas.box(-0.30, -0.24, 0.30, 0.28, 62)
    canvas.disc((-0.22, -0.16), 0.05, 110)
    for y in np.arange(5) * 0.12 - 0.22:
        canvas.box(-0.44, y, -0.36, y + 0.06, 200)
        canvas.box(0.36, y, 0.44, y + 0.06, 200)
    for x in (-0.78, 0.78):
        for y in (-0.78, 0.78):
            canvas.disc((x, y), 0.06, 30)
    part.box(-0.84, -0.84, 0.84, 0.84, 255)
    return 255 * shrink(canvas.pixels), shrink(part.pixels)


CATEGORIES = {"flange": flange, "board": board}


def photographed(grays: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate a camera: light from one side, random exposure, uneven surface, noise; (SIZE, SIZE) float32."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    side = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(*EXPOSURE) * (1 + rng.uniform(0, 0.2) * (np.cos(side) * x + np.sin(side) * y))
    uneven, grain = rng.normal(0, 1, (2, SIZE, SIZE)).astype(np.float32)
    image = soften(grays, 0.6) * light + 3 * GRAIN * soften(uneven, 1.0) + GRAIN / 2 * grain
    return image.astype(np.float32)


def blob(rng: np.random.Generator, radius: float, roughness: float) -> np.ndarray:
    """Opacity of a smooth irregular ellipse with the area of a disc of `radius` pixels: (SIZE, SIZE) float32."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    r = 1 + sum(roughness / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
    stretch = rng.uniform(1, 1.3)
    outline = r * (np.cos(angle) * stretch + 1j * np.sin(angle) / stretch) * np.exp(1j * rng.uniform(0, np.pi))
    points = np.stack([outline.real, outline.imag], 1).astype(np.float32)
    points *= radius * np.sqrt(np.pi / cv2.contourArea(points))
    reach = np.abs(points).max() + 3
    placed = (points + rng.uniform(reach, SIZE - reach, 2)) * SUPER
    return shrink(cv2.fillPoly(np.zeros((SIZE * SUPER, SIZE * SUPER), np.uint8), [placed.astype(np.int32)], 255))


def scratch(surface: np.ndarray, rng: np.random.Generator) -> Painted:
    """A long thin curved groove: light or dark, of varying width, with a faint line of opposite contrast beside it."""
    along = np.linspace(0, 1, rng.integers(170, 250))  # in steps of half a pixel
    heading = rng.uniform(0, np.pi) + rng.uniform(-0.9, 0.9) * along + 0.25 * np.sin(rng.uniform(4, 9) * along)
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * 0.5, axis=0)
    path += rng.uniform(0.42, 0.58, 2) * SIZE - path[len(path) // 2]
    width = rng.uniform(3.5, 5) * (0.8 + 0.2 * np.sin(rng.uniform(6, 14) * along + rng.uniform(0, 6)))
    width *= np.minimum(1, 8 * np.minimum(along, 1 - along) + 0.4)
    canvases = np.zeros((2, SIZE * SUPER, SIZE * SUPER), np.uint8)
    for canvas, shift in zip(canvases, (0, 0.8), strict=True):
        for (x, y), w in zip((path + shift) * SUPER, width * SUPER / 2, strict=True):
            cv2.circle(canvas, (int(x), int(y)), int(w), 255, -1)
    core, flank = map(shrink, canvases)
    base, contrast = soften(surface, 4), rng.choice([-1, 1]) * rng.uniform(1.3, 1.8) * CONTRAST
    grooved = mix(mix(surface, base - np.sign(contrast) * 20, 0.6 * flank), base + contrast, 0.92 * core)
    return grooved, np.maximum(core, flank)


def stain(surface: np.ndarray, rng: np.random.Generator) -> Painted:
    """A soft blob in which the surface is blurred and changed in brightness, more so at its border, as dried liquid."""
    opacity = soften(blob(rng, rng.uniform(15, 21), 0.9), 1.5)
    tint = rng.choice([-1, 1]) * rng.uniform(0.85, 1.1) * CONTRAST * (1 + 1.2 * opacity * (1 - opacity))
    return mix(surface, soften(surface, 5) + tint, opacity), opacity


def hole(surface: np.ndarray, rng: np.random.Generator) -> Painted:
    """A smooth dark spot, darker towards one side, with a slightly bright rim, as under oblique light."""
    pit = soften(blob(rng, rng.uniform(11, 15.5), 0.6), 0.7)
    rim = soften(cv2.dilate(pit, np.ones((5, 5), np.uint8)) - pit, 0.6)
    lit, (y, x) = rng.uniform(0, 2 * np.pi), np.mgrid[:SIZE, :SIZE] * 60 / SIZE
    shade = np.cos(lit) * x + np.sin(lit) * y
    shade -= np.average(shade, weights=pit)
    depth = np.percentile(surface[pit > 0.5], 25) - rng.uniform(0.8, 1.2) * CONTRAST + shade
    return mix(mix(surface, soften(surface, 4) + CONTRAST, 0.6 * rim), depth, pit), np.maximum(pit, rim)


def foreign(surface: np.ndarray, rng: np.random.Generator) -> Painted:
    """A piece of another image with a narrow shadow. Its mean is that of the surface: only its texture is anomalous."""
    opacity = soften(blob(rng, rng.uniform(15, 21), 0.5), 0.7)
    inside, image, piece = opacity > 0.5, load_grey(str(rng.choice(FOREIGN))), np.zeros_like(surface)
    while (piece - soften(piece, 3))[inside].std() < 6:  # a piece without texture would look like a stain
        piece = crop(image, SIZE, rng)
    piece = (piece - piece[inside].mean()) / piece[inside].std() * rng.uniform(0.65, 0.85) * CONTRAST
    piece += surface[inside].mean() + rng.choice([-1, 1]) * rng.uniform(8, 18)
    shadow = 0.8 * soften(np.roll(opacity, (2, 2), (0, 1)), 0.8)
    return mix(surface * (1 - shadow), piece, opacity), np.maximum(opacity, shadow)


DEFECTS = {"scratch": scratch, "stain": stain, "hole": hole, "foreign": foreign}


def visible_mask(before: np.ndarray, after: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Ground-truth mask of the pixels that changed visibly: (SIZE, SIZE) uint8, 0 or 255."""
    changed = ((np.abs(after - before) > 8) & (opacity > 0.2)).astype(np.uint8)
    # Closing fills pixels that happen to have their old value; the opacity keeps it inside the anomaly.
    closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15)))
    return (closed * (opacity > 0.2) * 255).astype(np.uint8)


def write_png(path: Path, grey: np.ndarray) -> None:
    """Write gray values, rounded and clipped to 0 to 255, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        path.write_bytes(cv2.imencode(".png", np.clip(np.rint(grey), 0, 255).astype(np.uint8))[1].tobytes())


def defective(draw: Callable, paint: Callable, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part with a visible anomaly on it, and its ground-truth mask; both (SIZE, SIZE).

    Args:
        draw: function of CATEGORIES. paint: function of DEFECTS.
    """
    while True:
        grays, part = draw(rng)
        surface = photographed(grays, rng)
        after, opacity = paint(surface, rng)
        mask = visible_mask(surface, after, opacity)
        if (opacity * part).sum() > 0.85 * opacity.sum() and np.count_nonzero(mask) >= MIN_DEFECT:
            return after, mask


def write_category(folder: Path, draw: Callable, rng: np.random.Generator) -> None:
    """Write one category in the MVTec AD layout."""
    for part, count in (("train", N_TRAIN), ("test", N_GOOD)):
        for i in range(count):
            write_png(folder / part / "good" / f"{i:03}.png", photographed(draw(rng)[0], rng))
    for kind, paint in DEFECTS.items():
        for i in range(N_PER_DEFECT):
            after, mask = defective(draw, paint, rng)
            write_png(folder / "test" / kind / f"{i:03}.png", after)
            write_png(folder / "ground_truth" / kind / f"{i:03}_mask.png", mask)


def write_textures(folder: Path, rng: np.random.Generator) -> None:
    """Write `folder`/<name>/NN.png: squares of random size from the images TEXTURES, resized to SIZE."""
    for name in TEXTURES:
        image = load_grey(name)
        for i in range(N_PER_TEXTURE):
            texture = np.zeros((SIZE, SIZE), np.float32)
            while np.median(np.abs(texture - soften(texture, 4))) < 1.5:  # not a square without texture
                square = crop(image, int(min(image.shape) * rng.uniform(0.2, 0.45)), rng)
                texture = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            write_png(folder / Path(name).stem / f"{i:02}.png", texture)


def trivial_auroc(category_folder: Path | str, img_size: int) -> float:
    """Image AUROC, in [0, 1], of a trivial detector, as a baseline for trained models.

    Its anomaly map is the difference to the mean training image, averaged over channels, at img_size x img_size pixels.
    Its image score is the maximum of the 21 x 21 average (zero padded), as for the model.
    """
    train, test = (sorted(Path(category_folder).glob(pattern)) for pattern in ("train/good/*.png", "test/*/*.png"))
    images = [read_image(path, (img_size, img_size)).astype(np.float32) / 255 for path in train + test]
    deviations = np.abs(np.array(images[len(train) :]) - np.mean(images[: len(train)], axis=0)).mean(3)
    scores = [cv2.blur(deviation, (21, 21), borderType=cv2.BORDER_CONSTANT).max() for deviation in deviations]
    metrics = image_metrics(np.array([path.parent.name != "good" for path in test]), np.array(scores))
    return metrics["image_auroc"] or 0.0


def make_sample(out: Path) -> None:
    """Write the dataset to `out` if it is not there, and print its properties. UserError if `out` is something else."""
    readme = README.format(version=VERSION).encode()
    is_there = (out / "README.txt").is_file() and (out / "README.txt").read_bytes() == readme
    if (out.exists() or out.is_symlink()) and not is_there:
        raise UserError(
            out, f"exists and is not this sample (version {VERSION})", "move it, or set --out to another folder"
        )
    if not is_there:
        building = out.with_name(f"{out.name}.tmp{os.getpid()}")  # renamed when complete
        try:
            for number, (name, draw) in enumerate(CATEGORIES.items()):
                write_category(building / "mvtec" / name, draw, np.random.default_rng([0, number]))
            write_textures(building / "textures", np.random.default_rng([0, len(CATEGORIES)]))
            (building / "README.txt").write_bytes(readme)
            building.rename(out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    for name in CATEGORIES:
        print(
            f"{name}: {N_TRAIN} training, {N_GOOD} nominal and {N_PER_DEFECT * len(DEFECTS)} anomalous test images; "
            f"a trivial detector has image AUROC {trivial_auroc(out / 'mvtec' / name, SIZE):.3f}"
        )
    print(f"sample: {out}" + (" (exists already)" if is_there else ""))


def main() -> int:
    """Parse the command line and write the sample."""
    parser = Parser(prog="make_sample.py", description=__doc__.splitlines()[0] + " Nothing is downloaded.")
    parser.add_argument("--out", type=path, default=Path("sample"), help="folder to write (default: %(default)s)")
    make_sample(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    run(main)
