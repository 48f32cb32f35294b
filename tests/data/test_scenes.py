import time

import numpy as np
import pytest

from psp_fast.data.scenes import CLASSES, CONTEXTUAL_PAIRS, PALETTE, Scenes
from psp_fast.errors import ConfigError, DataError

SIZE = (81, 289)
ID = {name: index for index, name in enumerate(CLASSES)}
GROUND = {"quay": "water", "pavement": "road", "carpet": "bed", "sand": "parasol"}
LANDMARK = {"boat": "water", "car": "road", "pillow": "bed", "rock": "parasol"}


@pytest.fixture(scope="module")
def pictures():
    scenes = Scenes("train", SIZE, 600, seed=0)
    return [scenes.load(index) for index in range(len(scenes))]


def test_same_seed_same_bytes():
    first, again = Scenes("train", SIZE, 5, seed=3), Scenes("train", SIZE, 9, seed=3)
    for index in (4, 0, 2):  # neither the order nor the count matters
        for a, b in zip(first.load(index), again.load(index), strict=True):
            np.testing.assert_array_equal(a, b)


def test_splits_seeds_and_indices_are_different_draws():
    sets = [Scenes("train", SIZE, 25, seed=0), Scenes("val", SIZE, 25, seed=0), Scenes("train", SIZE, 25, seed=1)]
    images = {scenes.load(index)[0].tobytes() for scenes in sets for index in range(25)}
    labels = {scenes.load(index)[1].tobytes() for scenes in sets for index in range(25)}
    assert len(images) == len(labels) == 75


@pytest.mark.parametrize(
    "size, shape", [((73, 289), (73, 289)), (97, (97, 97)), ((50, 131), (50, 131)), (33, (33, 33))]
)
def test_size_and_types(size, shape):
    scenes = Scenes("val", size, 20, seed=0)
    for index in range(20):
        image, label = scenes.load(index)
        assert image.shape == (*shape, 3) and image.dtype == np.uint8
        assert label.shape == shape and label.dtype == np.uint8
        assert label.max() < len(CLASSES)  # every pixel is labelled, no 255


def test_classes_and_palette():
    assert len(set(CLASSES)) == len(CLASSES) >= 10
    assert PALETTE.shape == (len(CLASSES), 3) and PALETTE.dtype == np.uint8
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == len(CLASSES)


def test_every_class_occurs_early(pictures):
    for part in (pictures[:50], pictures[50:100]):
        assert np.unique(np.stack([label for _, label in part])).tolist() == list(range(len(CLASSES)))


def test_both_members_of_a_pair_are_as_frequent(pictures):
    counts = np.bincount(np.stack([label for _, label in pictures]).ravel(), minlength=len(CLASSES))
    for one, other in CONTEXTUAL_PAIRS:
        assert 0.6 < counts[ID[one]] / counts[ID[other]] < 1.6


@pytest.mark.parametrize("one, other", CONTEXTUAL_PAIRS)
def test_pairs_have_the_same_colours(pictures, one, other):
    histograms = [_histogram(pictures, name) for name in (one, other)]
    assert (
        0.5 * np.abs(histograms[0] - histograms[1]).sum() < 0.15
    )  # share of pixels that a colour table could tell apart


def test_colours_tell_plain_classes_apart(pictures):
    """The yardstick of the test above: for classes with their own look, the same measure is large."""
    for one, other in (("sky", "grass"), ("tree", "building"), ("water", "road"), ("boat", "pillow")):
        assert 0.5 * np.abs(_histogram(pictures, one) - _histogram(pictures, other)).sum() > 0.5


def _histogram(pictures, name):
    """Share of the class's pixels in each of 5 x 5 x 5 colours."""
    pixels = np.concatenate([image[label == ID[name]] for image, label in pictures])
    bins = (pixels // 52).astype(np.int64) @ np.array([25, 5, 1])
    return np.bincount(bins, minlength=125) / len(pixels)


def test_things_have_their_landmark_in_the_picture(pictures):
    for _, label in pictures:
        names = {CLASSES[index] for index in np.unique(label)}
        landmarks = names & set(LANDMARK.values())
        assert 1 <= len(landmarks) <= 2
        assert {GROUND[ground] for ground in names & set(GROUND)} == landmarks
        assert {LANDMARK[thing] for thing in names & set(LANDMARK)} <= landmarks
        assert len(landmarks) == 1 or "wall" in names


def test_things_stand_far_from_their_landmark(pictures):
    gaps = []
    for _, label in pictures:
        columns = {name: np.flatnonzero((label == ID[name]).any(axis=0)) for name in CLASSES}
        for thing, landmark in LANDMARK.items():
            if columns[thing].size:
                gaps.append(np.abs(columns[thing][:, None] - columns[landmark][None]).min() / SIZE[1])
    assert len(gaps) > 300 and np.median(gaps) > 0.25  # in widths of the picture


def test_some_pictures_mix_two_kinds(pictures):
    landmarks = [ID[name] for name in set(LANDMARK.values())]
    mixed = [len(np.intersect1d(label, landmarks)) == 2 for _, label in pictures]
    assert 0.15 < np.mean(mixed) < 0.5


def test_drawing_is_fast():
    scenes = Scenes("train", SIZE, 20, seed=5)
    times = []
    for index in range(20):
        start = time.process_time()
        scenes.load(index)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.05


def test_names():
    assert Scenes("train", SIZE, 20, seed=0).name(12) == "scenes/train/00012"
    assert Scenes("val", SIZE, 20, seed=0).name(3) == "scenes/val/00003"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("test", SIZE, 5, 0), "split 'test' does not exist"),
        (("train", (32, 200), 5, 0), r"size \(32, 200\) is too small"),
        (("train", SIZE, 0, 0), "count 0 must be at least 1"),
        (("train", SIZE, 5, -1), "seed -1"),
    ],
)
def test_what_cannot_be_drawn(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Scenes(*arguments)


@pytest.mark.parametrize("index", [-1, 5])
def test_index_outside(index):
    with pytest.raises(DataError, match=f"no picture {index} in val"):
        Scenes("val", SIZE, 5, seed=0).load(index)
