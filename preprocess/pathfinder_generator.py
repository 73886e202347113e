"""Draws Pathfinder images: two discs at the ends of one dashed contour, or of two.

The stimulus of Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal
gated recurrent units", with the settings of the Long Range Arena. Two long contours start near
the middle, a fixed distance apart, and grow paddle by paddle alternately, each paddle at a random
angle to the last; short distractors fill the rest. No paddle comes nearer to another contour than
the clearance. One disc marks the start of a contour, the other the end of the same contour (label
1) or of the other (label 0), so the label is right by construction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from preprocess.parallel import ordered_map

CHUNK = 32  # images drawn at a time

_TRIES = 12  # angles tried before a contour counts as stuck
_SETBACK = 4  # paddles by which it is then taken back
_SETBACKS = 6  # times that this is done before all starts anew
_SCATTERINGS = 8  # points tried for a distractor before all starts anew
_CELLS = 128  # of the canvas, each way
_SUPERSAMPLING = 2
_POINTS = np.linspace(0, 1, 5)  # where along a paddle distances are taken


@dataclass(frozen=True)
class Settings:
    """The geometry of an image, in pixels; the defaults are those of the Long Range Arena.

    Attributes:
        side: Width and height.
        paddles: Paddles of a long contour.
        paddle_length: Length of a paddle.
        thickness: Its width.
        margin: Gap between the paddles of a contour.
        start_distance: Between the starts of the two long contours.
        marker_radius: Radius of the discs.
        padding: Free border.
        continuity: Largest angle between the first paddles, in radians; it shrinks evenly to half
            of that along the contour.
        distractors: How many distractors.
        distractor_paddles: Paddles of a distractor.
        easy: Leave the long contours out where the label is 0, for a stand-in that a small model
            learns at once.
    """

    side: int = 32
    paddles: int = 14
    paddle_length: float = 2
    thickness: float = 0.5
    margin: float = 1
    start_distance: float = 7
    marker_radius: float = 1.5
    padding: float = 1
    continuity: float = 1.0
    distractors: int = 20 // 4
    distractor_paddles: int = 14 // 3
    easy: bool = False

    @property
    def clearance(self) -> float:
        """Least distance between the centre lines of paddles that are not neighbours."""
        return self.thickness + 1.5 * self.margin

    @property
    def marker_clearance(self) -> float:
        """Least distance between a disc's centre and the centre lines of other paddles."""
        return self.marker_radius + self.thickness / 2 + self.margin


@dataclass(frozen=True)
class Drawing:
    """One image before it is drawn; points are complex numbers x + iy, in pixels.

    Attributes:
        label: 1 where the discs mark the ends of one contour, else 0.
        contours: The start and end of each paddle, (paddles, 2), of the two long contours.
        distractors: The same of the short ones.
        markers: The centres of the discs.
    """

    label: int
    contours: tuple[np.ndarray, ...]
    distractors: tuple[np.ndarray, ...]
    markers: tuple[complex, complex]


class _Stuck(Exception):
    """A contour found no way to go on."""


@dataclass
class _Paddle:
    """A paddle that has been placed, and the cells of the canvas that it closes to others."""

    start: complex
    end: complex
    heading: float
    cells: np.ndarray


class _Canvas:
    """A grid of cells that counts, for each, the paddles nearer than the clearance."""

    def __init__(self, rng: np.random.Generator, settings: Settings) -> None:
        self._rng = rng
        self._settings = settings
        self._scale = _CELLS / settings.side
        # a frame of closed cells, as wide as a paddle and the next can reach
        self._frame = int(2 * (settings.paddle_length + settings.margin) * self._scale) + 1
        self._width = _CELLS + 2 * self._frame
        self._centres = (np.arange(self._width) - self._frame + 0.5) / self._scale
        outside = (self._centres < settings.padding) | (
            self._centres > settings.side - settings.padding
        )
        self._closed = (outside[:, None] | outside).astype(np.int16).ravel()
        # the paddle itself, and the next if it goes straight on
        onward = 1 + settings.margin / settings.paddle_length
        self._along = settings.paddle_length * np.concatenate([_POINTS, onward + _POINTS])

    def start(self, points: np.ndarray) -> list[_Paddle]:
        """Begin a contour at the first of ``points`` where a paddle fits, in any direction.

        Raises:
            _Stuck: it fits nowhere.
        """
        contour = []
        self._place(contour, points, self._rng.uniform(-np.pi, np.pi, len(points)))
        return contour

    def grow(self, contours: list[list[_Paddle]], paddles: int) -> None:
        """Extend contours to a number of paddles, paddle by paddle, alternately.

        One that gets stuck is taken back a few paddles and grows anew.

        Raises:
            _Stuck: that did not help.
        """
        setbacks = 0
        while len(contour := min(contours, key=len)) < paddles:
            try:
                self._extend(contour, len(contour) / paddles)
            except _Stuck:
                setbacks += 1
                if setbacks > _SETBACKS:
                    raise
                self.take_back(contour, max(len(contour) - _SETBACK, 1))

    def scatter(self, paddles: int) -> list[_Paddle]:
        """Put a contour of a number of paddles somewhere.

        Raises:
            _Stuck: no point for it was found.
        """
        for _ in range(_SCATTERINGS):
            points = self._rng.uniform(0, self._settings.side, (_TRIES, 2)) @ (1, 1j)
            contour = self.start(points)
            try:
                self.grow([contour], paddles)
            except _Stuck:
                self.take_back(contour, 0)
            else:
                return contour
        raise _Stuck

    def close(self, point: complex, clearance: float) -> None:
        """Keep what follows away from a point."""
        self._closed[self._cells_near(point, point, clearance)] += 1

    def take_back(self, contour: list[_Paddle], keep: int) -> None:
        """Remove all but the first ``keep`` paddles of a contour."""
        for paddle in contour[keep:]:
            self._closed[paddle.cells] -= 1
        del contour[keep:]

    def _extend(self, contour: list[_Paddle], progress: float) -> None:
        last = contour[-1]
        largest = self._settings.continuity * (1 - progress / 2)
        headings = last.heading + self._rng.uniform(-largest, largest, _TRIES)
        # half of the gap goes straight on, half in the new direction
        half = self._settings.margin / 2
        starts = last.end + half * (np.exp(1j * last.heading) + np.exp(1j * headings))
        self._closed[last.cells] -= 1  # the paddle before is near by design
        try:
            self._place(contour, starts, headings)
        finally:
            self._closed[last.cells] += 1

    def _place(self, contour: list[_Paddle], starts: np.ndarray, headings: np.ndarray) -> None:
        """Add to ``contour`` the first of these paddles that fits.

        One after which the next could go straight on is preferred, so that contours turn away
        from what is ahead.
        """
        directions = np.exp(1j * headings)
        points = (starts[:, None] + directions[:, None] * self._along) * self._scale
        points += self._frame * (1 + 1j)
        cells = points.imag.astype(np.int64) * self._width + points.real.astype(np.int64)
        free = self._closed[cells] == 0
        fits = free[:, : len(_POINTS)].all(axis=1)
        if not fits.any():
            raise _Stuck
        chosen = int((fits * (1 + free.all(axis=1))).argmax())
        start = complex(starts[chosen])
        end = complex(start + self._settings.paddle_length * directions[chosen])
        near = self._cells_near(start, end, self._settings.clearance)
        self._closed[near] += 1
        contour.append(_Paddle(start, end, float(headings[chosen]), near))

    def _cells_near(self, start: complex, end: complex, clearance: float) -> np.ndarray:
        """Return the cells with a point nearer to a line than the clearance."""
        reach = clearance + math.sqrt(0.5) / self._scale
        columns = self._between(start.real, end.real, reach)
        rows = self._between(start.imag, end.imag, reach)
        points = self._centres[columns] + 1j * self._centres[rows][:, None] - start
        line = end - start
        along = (points * np.conj(line)).real / (abs(line) ** 2 or 1)
        distances = np.abs(points - along.clip(0, 1) * line)
        row, column = np.nonzero(distances < reach)
        return (row + rows.start) * self._width + column + columns.start

    def _between(self, one: float, other: float, reach: float) -> slice:
        first = int((min(one, other) - reach) * self._scale) + self._frame
        last = int((max(one, other) + reach) * self._scale) + self._frame
        return slice(max(first - 1, 0), last + 1)


def design(rng: np.random.Generator, settings: Settings, label: int) -> Drawing:
    """Lay out one image of a given label, trying again until everything fits."""
    while True:
        try:
            contours, distractors = _lay_out(rng, settings)
        except _Stuck:
            continue
        chosen = rng.integers(0, 2)
        start, end = contours[chosen][0, 0], contours[chosen if label else 1 - chosen][-1, 1]
        return Drawing(label, contours, distractors, (start, end))


def _lay_out(
    rng: np.random.Generator, settings: Settings
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    canvas = _Canvas(rng, settings)
    inner = min(2 * settings.start_distance, settings.side / 2)
    first = complex(*rng.uniform(inner, settings.side - inner, 2))
    second = first + settings.start_distance * np.exp(1j * rng.uniform(-np.pi, np.pi))
    contours = [canvas.start(np.full(_TRIES, point)) for point in (first, second)]
    for contour in contours:
        canvas.close(contour[0].start, settings.marker_clearance)
    canvas.grow(contours, settings.paddles)
    setbacks = 0
    while misfits := [one for one in contours if not _marker_fits(settings, contours, one)]:
        setbacks += 1
        if setbacks > _SETBACKS:
            raise _Stuck
        for contour in misfits:
            canvas.take_back(contour, settings.paddles - _SETBACK)
        canvas.grow(contours, settings.paddles)
    for contour in contours:
        canvas.close(contour[-1].end, settings.marker_clearance)
    distractors = [canvas.scatter(settings.distractor_paddles) for _ in range(settings.distractors)]
    return tuple(map(_ends, contours)), tuple(map(_ends, distractors))


def _ends(contour: list[_Paddle]) -> np.ndarray:
    return np.array([(paddle.start, paddle.end) for paddle in contour])


def _marker_fits(settings: Settings, contours: list[list[_Paddle]], contour: list[_Paddle]) -> bool:
    """Tell whether a disc at the end of ``contour`` lies inside the image and by itself.

    It must keep away from discs at either start, marked or not, so that the label changes nothing.
    """
    room = settings.marker_radius + settings.padding
    end = contour[-1].end
    starts = np.array([one[0].start for one in contours])
    others = np.concatenate([_ends(one)[: -1 if one is contour else None] for one in contours])
    along = others[:, :1] + (others[:, 1:] - others[:, :1]) * _POINTS
    return bool(
        min(end.real, end.imag) >= room
        and max(end.real, end.imag) <= settings.side - room
        and np.abs(starts - end).min() >= 2 * settings.marker_radius + settings.margin
        and np.abs(along - end).min() >= settings.marker_clearance
    )


def draw(drawing: Drawing, settings: Settings) -> np.ndarray:
    """Draw at twice the size and reduce by Lanczos: uint8 (side, side), white on black."""
    scale = _SUPERSAMPLING
    large = Image.new("L", (settings.side * scale, settings.side * scale))
    pen = ImageDraw.Draw(large)
    shown = () if settings.easy and not drawing.label else drawing.contours
    for contour in (*shown, *drawing.distractors):
        for start, end in contour * scale:
            pen.line(
                (start.real, start.imag, end.real, end.imag),
                fill=255,
                width=round(settings.thickness * scale),
            )
    radius = settings.marker_radius * scale
    for centre in np.array(drawing.markers) * scale:
        x, y = centre.real, centre.imag
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    size = (settings.side, settings.side)
    return np.asarray(large.resize(size, Image.Resampling.LANCZOS))


def generate(
    settings: Settings, *, seed: int, count: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield chunks of images (chunk, side * side) uint8 and labels (chunk,), ``count`` in all.

    Labels alternate. Image i depends on the seed and i alone.
    """
    ranges = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    yield from ordered_map(partial(_draw_range, settings, seed), ranges, workers)


def _draw_range(settings: Settings, seed: int, numbers: range) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([number % 2 for number in numbers])
    images = [
        draw(design(np.random.default_rng((seed, number)), settings, number % 2), settings)
        for number in numbers
    ]
    return np.stack(images).reshape(len(images), -1), labels
