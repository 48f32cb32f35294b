import numpy as np
import pytest
from PIL import Image

from psp_fast.data.check import check_dataset
from psp_fast.data.images import read_image
from psp_fast.data.lists import ListDataset
from psp_fast.data.palette import default_palette
from psp_fast.errors import DataError

CLASSES = ["sky", "road", "tree", "kerb"]


def add(root, name, label, size=None):
    height, width = size or label.shape
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(root / f"{name}.png")
    Image.fromarray(label.astype(np.uint8)).save(root / f"{name}_label.png")


def listed(root, names):
    (root / "list.txt").write_text("\n".join(f"{name}.png {name}_label.png" for name in names))
    return ListDataset(root, "list.txt", CLASSES)


@pytest.fixture
def good(tmp_path):
    add(tmp_path, "a", np.array([[0, 0, 0], [1, 1, 255]]))
    add(tmp_path, "b", np.array([[1, 2, 2, 2], [255, 255, 1, 1], [1, 1, 1, 1]]))
    return listed(tmp_path, "ab")


def test_counts_of_a_good_data_set(good):
    report = check_dataset(good, progress=False)
    assert report.ok
    assert report.samples == 2
    assert report.pixels.tolist() == [3, 9, 3, 0]
    assert report.images.tolist() == [1, 2, 1, 0]
    assert report.ignored == 3
    assert report.sizes == {(2, 3): 1, (3, 4): 1}
    assert report.warning == "no pixel of the 2 labels has the class kerb"
    assert report.shares.tolist() == [20, 60, 20, 0]


def test_text_of_a_good_data_set(good):
    text = check_dataset(good, progress=False).text()
    assert "2 samples, 2 without a problem" in text
    assert "image size (width x height): from 3x2 to 4x3, 2 different" in text
    assert "ignored pixels: 16.67 %" in text
    assert "  1  road    60.000 %        2" in text
    assert "warning: no pixel of the 2 labels has the class kerb" in text
    assert text.endswith("0 problems")


def check(root, label):
    add(root, "a", label)
    return check_dataset(listed(root, "a"), progress=False)


def test_masks_of_0_and_255_are_not_two_classes(tmp_path):
    report = check(tmp_path, np.array([[0, 255], [255, 0]]))
    assert "no pixel of the label has the classes road, tree, kerb: only the value 0 counts" in report.warning
    assert "if the files hold 0 and 255 for two classes, set data.label_ids to [0, 255]" in report.text()


def test_labels_that_are_all_ignored(tmp_path):
    report = check(tmp_path, np.full((2, 2), 255))
    assert "every pixel of the label is ignored (255), so there is nothing to learn" in report.text()


def test_only_the_largest_of_many_classes_are_listed(tmp_path):
    label = np.zeros((20, 15), np.uint8)
    label.flat[200:] = np.arange(100) % 50 + 50  # of 100 classes 0 and 50 to 99 occur
    add(tmp_path, "a", label)
    (tmp_path / "list.txt").write_text("a.png a_label.png")
    dataset = ListDataset(tmp_path, "list.txt", [f"class {i}" for i in range(100)])
    lines = check_dataset(dataset, progress=False).text().splitlines()
    header = lines.index(next(line for line in lines if line.startswith(" id")))
    assert [int(line.split()[0]) for line in lines[header + 1 : header + 31]] == [0, *range(50, 79)]
    assert lines[header + 31] == "and 70 more classes with fewer pixels: see the histogram"
    assert any("has the classes class 1, class 2," in line and line.endswith("class 10 and 39 more") for line in lines)


def test_every_problem_is_collected_with_its_file(tmp_path):
    add(tmp_path, "fine", np.array([[0, 1], [2, 3]]))
    add(tmp_path, "range", np.array([[0, 4], [2, 77]]))
    add(tmp_path, "size", np.array([[0, 1], [2, 3]]), size=(5, 5))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "cut_label.png")
    report = check_dataset(listed(tmp_path, ["range", "size", "missing", "cut", "fine"]), progress=False)
    assert not report.ok
    assert len(report.problems) == 4
    assert "range_label.png: label ids other than 0..3" in report.problems[0]
    assert "4 (1 pixel, first at row 0, column 1), 77 (1 pixel" in report.problems[0]
    assert "size.png: the image is 5x5 pixels" in report.problems[1]
    assert "missing_label.png: no such file" in report.problems[2]
    assert "cut.png: is damaged or incomplete" in report.problems[3]
    assert report.pixels.tolist() == [1, 1, 1, 1]
    text = report.text()
    assert "5 samples, 1 without a problem" in text
    assert "image size (width x height): 2x2, all alike" in text
    assert "4 problems" in text
    assert all(problem in text for problem in report.problems)


def test_nothing_readable_still_makes_a_report(tmp_path):
    report = check_dataset(listed(tmp_path, [f"none{i}" for i in range(150)]), progress=False)
    text = report.text()
    assert "image size (width x height): unknown" in text
    assert "150 problems" in text
    assert text.endswith("and 50 more")
    report.save_histogram(tmp_path / "histogram.png")
    assert (tmp_path / "histogram.png").exists()


class Drawn:
    """A data set that is not made of files."""

    classes = ("a", "b")
    palette = default_palette(2)

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def name(self, index):
        return f"drawing {index}"

    def load(self, index):
        return self.samples[index]


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (
            np.zeros((2, 2), np.uint8),
            np.zeros((2, 2), np.uint8),
            "drawing 0: the image must be (H, W, 3) uint8 but is (2, 2) uint8",
        ),
        (
            np.zeros((2, 2, 3)),
            np.zeros((2, 2), np.uint8),
            "drawing 0: the image must be (H, W, 3) uint8 but is (2, 2, 3) float64",
        ),
        (
            np.zeros((2, 2, 3), np.uint8),
            np.zeros((2, 2), int),
            "drawing 0: the label must be (H, W) uint8 but is (2, 2) int64",
        ),
        (np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 2, np.uint8), "drawing 0: label ids other than 0..1 and 255"),
    ],
)
def test_what_any_data_set_yields_is_checked(image, label, message):
    report = check_dataset(Drawn((image, label)), progress=False)
    assert len(report.problems) == 1
    assert message in report.problems[0]


def test_only_data_errors_are_problems():
    with pytest.raises(TypeError):
        check_dataset(Drawn(None), progress=False)


def test_histogram_has_a_bar_in_each_class_colour(good, tmp_path):
    report = check_dataset(good, progress=False)
    report.save_histogram(tmp_path / "out" / "histogram.png")
    picture = read_image(tmp_path / "out" / "histogram.png").reshape(-1, 3)
    areas = [(picture == colour).all(axis=1).sum() for colour in good.palette]
    assert areas[1] > areas[0] > 1000
    assert areas[0] == pytest.approx(areas[2], rel=0.1)
    assert areas[3] == 0


def test_unwritable_histogram_is_named(good, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/histogram\.png: cannot be written"):
        check_dataset(good, progress=False).save_histogram(tmp_path / "file" / "histogram.png")


def test_progress_is_shown(good, capsys):
    check_dataset(good)
    assert "2/2" in capsys.readouterr().err
