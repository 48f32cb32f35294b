import os

import numpy as np
import pytest
from PIL import Image

from psp_fast.data.lists import ListDataset
from psp_fast.data.palette import default_palette
from psp_fast.errors import DataError

CLASSES = ["sky", "road", "tree"]


@pytest.fixture
def root(tmp_path):
    """Two pairs, a and b, of 6x4 pixels, and a list of them."""
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(rng.choice([0, 1, 2, 255], (4, 6)).astype(np.uint8)).save(tmp_path / f"{name}_label.png")
    (tmp_path / "list.txt").write_text("a.png a_label.png\nb.png b_label.png\n")
    return tmp_path


def pixels(path):
    return np.asarray(Image.open(path))


def write_list(root, text):
    (root / "list.txt").write_text(text)
    return ListDataset(root, "list.txt", CLASSES)


def test_samples_are_read_in_the_order_of_the_list(root):
    dataset = ListDataset(root, "list.txt", CLASSES)
    assert len(dataset) == 2
    assert dataset.classes == ("sky", "road", "tree")
    for index, name in enumerate("ab"):
        image, label = dataset.load(index)
        assert image.dtype == label.dtype == np.uint8
        assert np.array_equal(image, pixels(root / f"{name}.png"))
        assert np.array_equal(label, pixels(root / f"{name}_label.png"))
        assert dataset.name(index) == str(root / f"{name}.png")


def test_list_outside_the_root_and_absolute_names(root, tmp_path_factory):
    list_file = tmp_path_factory.mktemp("elsewhere") / "list.txt"
    list_file.write_text(f"{root}/b.png {root}/b_label.png")
    assert np.array_equal(ListDataset("/nowhere", list_file, CLASSES).load(0)[0], pixels(root / "b.png"))


def test_blank_lines_comments_and_foreign_line_ends(root):
    (root / "list.txt").write_bytes(b"\xef\xbb\xbfa.png   a_label.png\r\n\r\n  # b is bad\r\n")
    assert ListDataset(root, "list.txt", CLASSES).pairs == [(root / "a.png", root / "a_label.png")]


def test_names_with_spaces_are_separated_by_a_tab(root):
    pairs = write_list(root, "my image.png\tmy label.png").pairs
    assert pairs == [(root / "my image.png", root / "my label.png")]


@pytest.mark.parametrize(
    ("line", "count"), [("a.png", "1 name;"), ("my image.png my label.png", "4 names;"), ("a\tb\tc", "3 names;")]
)
def test_a_line_that_is_no_pair_is_named(root, line, count):
    with pytest.raises(DataError, match=rf"list\.txt, line 3: expected an image and a label but found {count}.*tab"):
        write_list(root, f"a.png a_label.png\n\n{line}\n")


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n"])
def test_empty_list(root, text):
    with pytest.raises(DataError, match=r"list\.txt: the list is empty; it needs one 'image label' pair a line"):
        write_list(root, text)


def test_missing_list(root):
    with pytest.raises(
        DataError, match=r"none\.txt and none\.txt: no such list of images and labels; check data\.root"
    ):
        ListDataset(root, "none.txt", CLASSES)


def test_a_list_that_is_no_text(root):
    with pytest.raises(DataError, match=r"a\.png: the list .* cannot be read \(it is not UTF-8 text\)"):
        ListDataset(root, "a.png", CLASSES)


def test_a_list_that_is_a_pipe_or_has_a_nul(root):
    os.mkfifo(root / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: the list .* cannot be read \(it is not a regular file but a pipe"):
        ListDataset(root, "pipe.txt", CLASSES)
    (root / "list.txt").write_bytes("a.png a_label.png\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"list\.txt: the list .* cannot be read \(it is not UTF-8 text\)"):
        ListDataset(root, "list.txt", CLASSES)


@pytest.mark.parametrize("count", [0, 1, 256])
def test_number_of_classes(root, count):
    with pytest.raises(DataError, match=f"at least two classes and at most 255; named: {count}"):
        ListDataset(root, "list.txt", [f"class {i}" for i in range(count)])


def test_missing_image_is_named(root):
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        write_list(root, "none.png a_label.png").load(0)


def test_size_mismatch_names_both(root):
    Image.new("L", (5, 4)).save(root / "a_label.png")
    with pytest.raises(DataError, match=r"a\.png: the image is 6x4 pixels.*a_label\.png is 5x4"):
        ListDataset(root, "list.txt", CLASSES).load(0)


def test_label_out_of_range_is_named_counted_and_located(root):
    label = np.zeros((4, 6), np.uint8)
    label[2, 3:5] = 3
    label[3, 0] = 200
    Image.fromarray(label).save(root / "b_label.png")
    dataset = ListDataset(root, "list.txt", CLASSES)
    dataset.load(0)
    with pytest.raises(DataError) as error:
        dataset.load(1)
    message = str(error.value)
    assert "b_label.png: label ids other than 0..2 and 255 (ignored)" in message
    assert "3 (2 pixels, first at row 2, column 3), 200 (1 pixel, first at row 3, column 0)" in message
    assert "label_ids" in message


def test_many_wrong_ids_are_summed_up(root):
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(root / "a_label.png")
    with pytest.raises(DataError, match=r"7 \(1 pixel, first at row 1, column 1\), and 16 more ids"):
        ListDataset(root, "list.txt", CLASSES).load(0)


def test_label_ids_map_the_files_values(root):
    label = np.array([[0, 1, 2, 3, 4, 255]] * 4, np.uint8)
    Image.fromarray(label).save(root / "a_label.png")
    _, mapped = ListDataset(root, "list.txt", CLASSES, label_ids=[1, 2, 4]).load(0)
    assert mapped[0].tolist() == [255, 0, 1, 255, 2, 255]


@pytest.mark.parametrize("label_ids", [[1, 2], [1, 2, 2], [1, 2, 256], [-1, 0, 1]])
def test_label_ids_must_fit_the_classes(root, label_ids):
    with pytest.raises(DataError, match=r"label_ids must hold 3 different values in 0\.\.255"):
        ListDataset(root, "list.txt", CLASSES, label_ids=label_ids)


def test_palette_is_kept_and_checked(root):
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 255]]
    kept = ListDataset(root, "list.txt", CLASSES, palette).palette
    assert kept.dtype == np.uint8
    assert kept.tolist() == palette
    for wrong in (palette[:2], [[0, 0, 256]] * 3):
        with pytest.raises(DataError, match=r"the palette must hold 3 RGB colours"):
            ListDataset(root, "list.txt", CLASSES, wrong)


def test_default_palette_is_distinct_stable_and_never_black(root):
    palette = default_palette(255).astype(int)
    distance = np.abs(palette[:, None] - palette).sum(axis=-1) + 999 * np.eye(255, dtype=int)
    assert distance.min() >= 15
    assert distance[:20, :20].min() > 60
    assert palette.sum(axis=1).min() >= 90
    assert np.array_equal(default_palette(3), palette[:3])
    assert np.array_equal(ListDataset(root, "list.txt", CLASSES).palette, palette[:3])
