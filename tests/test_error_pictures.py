import tracemalloc

import numpy as np

from psp_fast.error_pictures import IGNORED, WRONG, board, error_map, legend, panels

CLASSES = ["sky", "road"]
PALETTE = np.array([[0, 0, 200], [200, 0, 0]], np.uint8)


def test_error_map_marks_wrong_and_ignored_pixels_alone():
    image = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    truth, prediction = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    prediction[0, 1] = 1
    truth[4:] = 255
    errors = error_map(image, truth, prediction)
    assert tuple(errors[0, 1]) == WRONG
    assert len(set(errors[1, 1].tolist())) == 1 and errors[1, 1, 0] > 165, "right pixels are pale grey"
    assert {tuple(colour) for colour in errors[4:].reshape(-1, 3).tolist()} == set(IGNORED)


def test_panels_reduce_large_images_and_enlarge_small_ones():
    for height, width, expected in ((2000, 1000, (320, 640)), (20, 30, (630, 420)), (640, 600, (600, 640))):
        label = np.zeros((height, width), np.uint8)
        drawn = panels(np.zeros((height, width, 3), np.uint8), label, label, PALETTE)
        assert list(drawn) == ["image", "truth", "prediction", "errors"]
        assert {panel.size for panel in drawn.values()} == {expected}


def test_truth_and_prediction_lie_over_the_image():
    image = np.full((640, 640, 3), 100, np.uint8)
    truth, prediction = np.zeros((640, 640), np.uint8), np.ones((640, 640), np.uint8)
    drawn = panels(image, truth, prediction, PALETTE)
    assert np.abs(np.asarray(drawn["truth"])[9, 9].astype(int) - (45, 45, 155)).max() <= 1
    assert np.abs(np.asarray(drawn["prediction"])[9, 9].astype(int) - (155, 45, 45)).max() <= 1


def test_board_has_the_classes_of_both_and_the_marks():
    truth, prediction = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    truth[:9, :9], prediction[40:] = 255, 1
    image = np.full((64, 64, 3), 255, np.uint8)
    entries = legend(truth, prediction, CLASSES, PALETTE)
    assert [entry.name for entry in entries] == ["wrong", "ignored", "sky", "road"]
    picture = np.asarray(board(panels(image, truth, prediction, PALETTE), entries))
    drawn = {tuple(colour) for colour in picture[2 * (640 + 32) + 8 :].reshape(-1, 3).tolist()}
    assert {WRONG, IGNORED[0], (0, 0, 200), (200, 0, 0)} <= drawn


def test_a_large_picture_needs_little_more_than_its_own_memory():
    """Counting the classes of all its pixels would take eight bytes a pixel."""
    label = np.zeros((4000, 4000), np.uint8)
    tracemalloc.start()
    board(panels(np.zeros((4000, 4000, 3), np.uint8), label, label, PALETTE), legend(label, label, CLASSES, PALETTE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * label.size
