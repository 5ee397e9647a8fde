"""Data sets: read as published, held out the same way every time, and clear about what is missing."""

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import cifar10
from export.cifar10 import CIFAR10_CLASSES, Cifar10, download_cifar10
from export.data import Digits, open_source
from export.examples import held_out, load, split
from export.folder import ImageFolder
from export.recipe import DataConfig, load_recipe
from saccade.errors import DataError
from saccade.manifest import Preprocessing

NAMES = [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]
BYTES = 30_730_000  # of each file, as published
RECORD = 3_073
STRETCH = Preprocessing(height=12, width=20, fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))


def write_cifar10(folder: Path, size: int = BYTES) -> None:
    """Files of zeros, which take no room on disk."""
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).touch()
        os.truncate(folder / name, size)


def write_record(path: Path, index: int, label: int, pixels: np.ndarray) -> None:
    """Label byte, then 1,024 bytes each of red, green and blue, row by row (the layout published with the data)."""
    with path.open("r+b") as file:
        file.seek(index * RECORD)
        file.write(bytes([label]))
        for channel in range(3):
            for row in range(32):
                file.write(bytes(pixels[row, column, channel] for column in range(32)))


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"], ids=["the folder itself", "the folder around it"])
def test_cifar10s_binary_layout_is_read_pixel_by_pixel(tmp_path: Path, inner: str) -> None:
    """Label, then red, green and blue planes; files in the order of their names; both ways of naming the folder."""
    write_cifar10(tmp_path / "data" / inner)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, 32, 32, 3), np.uint8)
    places = [("data_batch_1.bin", 0), ("data_batch_1.bin", 9_999), ("data_batch_2.bin", 0), ("test_batch.bin", 1)]
    for label, (name, index) in enumerate(places, start=6):
        write_record(tmp_path / "data" / inner / name, index, label, pixels[label - 6])
    source = Cifar10(tmp_path / "data")
    examples = list(islice(source.training(), 10_001))
    for label, example in ((6, examples[0]), (7, examples[9_999]), (8, examples[10_000])):
        assert example.label == label
        np.testing.assert_array_equal(np.asarray(example.picture), pixels[label - 6])
    assert examples[1].label == 0
    test = list(islice(source.test(), 2))[1]
    assert test.label == 9
    np.testing.assert_array_equal(np.asarray(test.picture), pixels[3])
    assert source.classes[6:] == ("frog", "horse", "ship", "truck")


def test_a_file_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    """A download that broke off is found before it trains anything."""
    write_cifar10(tmp_path / "bin")
    os.truncate(tmp_path / "bin" / "data_batch_1.bin", 12_345)
    with pytest.raises(DataError, match=r"data_batch_1\.bin has 12345 bytes; CIFAR-10 has 30730000 there"):
        Cifar10(tmp_path / "bin").training()


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path: Path) -> None:
    """A missing data set is one sentence: what is missing, where, and the option that fetches it."""
    write_cifar10(tmp_path / "bin")
    (tmp_path / "bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"bin lacks data_batch_3\.bin: .*--download"):
        Cifar10(tmp_path / "bin")
    with pytest.raises(DataError, match=r"nowhere/cifar-10-batches-bin lacks data_batch_1\.bin, .*--download"):
        Cifar10(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["cifar10", "folder"])
def test_data_on_disk_need_a_folder(kind: str) -> None:
    """Whoever forgets --data is told so."""
    config = DataConfig.model_validate({"kind": kind})
    with pytest.raises(DataError, match=f"{kind}.*give --data DIR"):
        open_source(config, None, STRETCH)


@pytest.fixture
def cifar10_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves a small archive of the published form on the loopback, in place of Toronto; the archive's checksum."""
    (tmp_path / "www").mkdir()
    with tarfile.open(tmp_path / "www" / "cifar.tar.gz", "w:gz") as tar:
        for name in NAMES:
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"tiny"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(cifar10, "CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        yield hashlib.sha256((tmp_path / "www" / "cifar.tar.gz").read_bytes()).hexdigest()
        server.shutdown()
        thread.join()


def test_a_download_with_the_right_checksum_is_there_whole(
    cifar10_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One command fetches the data set; the next one finds it and fetches nothing."""
    monkeypatch.setattr(cifar10, "CIFAR10_SHA256", cifar10_server)
    download_cifar10(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-bin"]
    assert sorted(path.name for path in (tmp_path / "data" / "cifar-10-batches-bin").iterdir()) == NAMES
    assert (tmp_path / "data" / "cifar-10-batches-bin" / "test_batch.bin").read_bytes() == b"tiny"
    monkeypatch.setattr(cifar10, "CIFAR10_URL", "http://127.0.0.1:1/nobody-is-here")
    download_cifar10(tmp_path / "data")
    download_cifar10(tmp_path / "data" / "cifar-10-batches-bin")


@pytest.mark.usefixtures("cifar10_server")
def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    """Both checksums are in the message, and no file of the wrong archive is left."""
    with pytest.raises(DataError, match=r"has sha256 [0-9a-f]{64}; CIFAR-10 has c4a38c50a1bc"):
        download_cifar10(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.usefixtures("cifar10_server")
def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network is a sentence, not a stack trace."""
    monkeypatch.setattr(cifar10, "CIFAR10_URL", f"{cifar10.CIFAR10_URL}.gone")
    with pytest.raises(DataError, match=r"could not fetch http://127\.0\.0\.1:\d+/cifar\.tar\.gz\.gone .*404"):
        download_cifar10(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_does_not_pass_over_a_damaged_copy(tmp_path: Path) -> None:
    """`--download` never says that all is well where files are missing, and deletes nothing of yours."""
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_5\.bin: remove it"):
        download_cifar10(tmp_path)
    assert len(list((tmp_path / "cifar-10-batches-bin").iterdir())) == 5


def cifar10_like_labels() -> np.ndarray:
    return np.arange(50_000) % 10


def test_five_hundred_of_each_class_of_cifar10_are_held_out() -> None:
    """One of ten training pictures of each class is kept for choices, and no more."""
    labels = cifar10_like_labels()
    mask = held_out(labels, CIFAR10_CLASSES)
    assert np.bincount(labels[mask]).tolist() == [500] * 10
    assert np.bincount(labels[~mask]).tolist() == [4_500] * 10


def test_the_same_pictures_are_held_out_every_time() -> None:
    """Neither another call nor another release of numpy moves a picture over; the digest is that of numpy 2.4."""
    mask = held_out(cifar10_like_labels(), CIFAR10_CLASSES)
    np.testing.assert_array_equal(mask, held_out(cifar10_like_labels(), CIFAR10_CLASSES))
    assert hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16] == "a0b9721e841fd7f1"


def test_a_split_puts_each_picture_on_one_side() -> None:
    """What choices are made on was never trained on."""
    pictures = load(Digits().training(), STRETCH)
    to_train_on, kept = (load(part, STRETCH) for part in split(Digits()))
    marks = [{pixels.tobytes() for pixels in part.pixels} for part in (to_train_on, kept, pictures)]
    assert len(to_train_on.labels) + len(kept.labels) == len(pictures.labels)
    assert not marks[0] & marks[1]
    assert marks[0] | marks[1] == marks[2]


def test_a_class_of_one_picture_cannot_be_split() -> None:
    """The class and its count are named."""
    with pytest.raises(DataError, match="class dog has 1 training picture; at least 2 are needed"):
        held_out(np.array([0, 0, 1]), ("cat", "dog"))


FORMATS = {
    "zebra/a.png": ("PNG", "RGB", (31, 17)),
    "zebra/b.JPG": ("JPEG", "L", (64, 48)),
    "ant/c.webp": ("WEBP", "RGB", (20, 20)),
    "ant/d.gif": ("GIF", "P", (9, 40)),
    "mole/e.bmp": ("BMP", "RGB", (33, 12)),
    "mole/f.tiff": ("TIFF", "CMYK", (25, 50)),
    "mole/g.jpeg": ("JPEG", "CMYK", (25, 50)),
    "mole/h.png": ("PNG", "RGBA", (25, 50)),
}


def write_folder(root: Path, split_name: str = "train") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    written = {}
    for name, (kind, mode, size) in FORMATS.items():
        written[name] = generator.integers(0, 256, (*size[::-1], 3), np.uint8)
        path = root / split_name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(written[name]).convert(mode).save(path, kind)
    (root / split_name / "ant" / "notes.txt").write_text("no picture")
    return written


def test_an_image_folder_takes_pictures_of_any_size_and_format(tmp_path: Path) -> None:
    """Classes are the sorted folder names; each picture comes upright in RGB, in a fixed order."""
    written = write_folder(tmp_path)
    source = open_source(DataConfig(kind="folder"), tmp_path, STRETCH)
    assert source.classes == ("ant", "mole", "zebra")
    examples = list(source.training())
    assert [example.label for example in examples] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert [example.picture.size for example in examples] == [
        FORMATS[name][2] for name in sorted(FORMATS, key=lambda name: name.lower())
    ]
    assert {example.picture.mode for example in examples} == {"RGB"}
    np.testing.assert_array_equal(np.asarray(examples[6].picture), written["zebra/a.png"])
    np.testing.assert_array_equal(np.asarray(examples[2].picture), written["mole/e.bmp"])
    assert load(source.training(), STRETCH).pixels.shape == (8, 12, 20, 3)


@pytest.mark.parametrize("name", ["test", "val"])
def test_the_test_split_of_an_image_folder_is_test_or_val(tmp_path: Path, name: str) -> None:
    """Both usual names are read, with the classes of train/."""
    write_folder(tmp_path)
    source = ImageFolder(tmp_path, (255, 255, 255))
    with pytest.raises(DataError, match="has neither test/ nor val/"):
        source.test()
    write_folder(tmp_path, name)
    assert [example.label for example in source.test()] == [0, 0, 1, 1, 1, 1, 2, 2]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    """One bad file among a million is found by its path."""
    write_folder(tmp_path)
    path = tmp_path / "train" / "mole" / "g.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/mole/g\.jpeg: "):
        list(ImageFolder(tmp_path, (255, 255, 255)).training())


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    """A class that nothing was put into is a mistake, not a class."""
    write_folder(tmp_path)
    (tmp_path / "train" / "newt").mkdir()
    with pytest.raises(DataError, match=r"train/newt has no picture \(.*\.png"):
        list(ImageFolder(tmp_path, (255, 255, 255)).training())


def test_a_folder_of_another_number_of_classes_than_the_recipe_says_is_refused(tmp_path: Path) -> None:
    """A recipe for ImageNet never trains on some other folder by mistake: both numbers are named."""
    write_folder(tmp_path)
    assert open_source(DataConfig(kind="folder", classes=3), tmp_path, STRETCH).classes == ("ant", "mole", "zebra")
    with pytest.raises(DataError, match="has 3 class folders; the recipe says 1000 classes"):
        open_source(DataConfig(kind="folder", classes=1000), tmp_path, STRETCH)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    """No train/, or one class alone: said before anything is read."""
    with pytest.raises(DataError, match="has no folder train/"):
        ImageFolder(tmp_path, (255, 255, 255))
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="has 1 class folders; at least 2 are needed"):
        ImageFolder(tmp_path, (255, 255, 255))


def test_the_digits_need_no_download_and_every_fifth_is_for_the_test() -> None:
    """1,797 pictures of ten classes, in the order in which scikit-learn gives them; no picture is in both splits."""
    from sklearn.datasets import load_digits

    reference = load_digits()
    training, test = list(Digits().training()), list(Digits().test())
    assert [example.label for example in test] == reference.target[::5].tolist()
    assert len(training) + len(test) == 1_797
    seen = np.asarray(test[1].picture)[..., 0]
    np.testing.assert_allclose(seen, reference.images[5] * 255 / 16, atol=0.5)
    assert not {e.picture.tobytes() for e in training} & {e.picture.tobytes() for e in test}


@pytest.mark.skipif("SACCADE_CIFAR10" not in os.environ, reason="SACCADE_CIFAR10 does not name a folder of CIFAR-10")
def test_the_real_cifar10_is_what_was_published() -> None:
    """5,000 and 1,000 pictures a class, and the channel means that every paper states."""
    source = Cifar10(Path(os.environ["SACCADE_CIFAR10"]))
    spec = load_recipe("cifar10-cct").preprocessing
    training, test = load(source.training(), spec), load(source.test(), spec)
    assert np.bincount(training.labels).tolist() == [5_000] * 10
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    means = training.pixels.mean((0, 1, 2), np.float64) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.bincount(split(source)[1].labels).tolist() == [500] * 10
