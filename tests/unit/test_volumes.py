"""Volumes written with known values: slices in the patient's order, one window for all, and the rest refused in words."""

from __future__ import annotations

import dataclasses
import gzip
import io
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).parent))
from coded_video import Clips

from sam2_backend.errors import VideoFrameError, VideoTooLargeError, VideoUnreadableError, VolumeSupportError
from sam2_backend.volume_window import Window, sampled_window, to_rgb

N, HEIGHT, WIDTH = 5, 12, 20
OPEN_FILES = Path("/proc/self/fd")  # on Linux
RNG = np.random.default_rng(3)
BLOCK = RNG.integers(-1000, 2000, (N, HEIGHT, WIDTH)).astype(np.int16)
"""Slices from the feet up, rows from the front back, columns from the patient's right to the left."""


@pytest.fixture
def clips(tmp_path) -> Clips:
    return Clips(tmp_path)


def shades(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(((values - low) * (255.0 / (high - low))).clip(0, 255)).astype(np.uint8)


def by_percentiles(values: np.ndarray) -> np.ndarray:
    return shades(values.astype(float), *np.percentile(BLOCK, (0.5, 99.5)))


def nifti(axes: str = "LPS", dtype=np.int16, kind=nibabel.Nifti1Image) -> bytes:
    """`BLOCK` with its axes stored in this order and these directions."""
    lps = BLOCK.transpose(2, 1, 0).astype(dtype)  # column, row, slice
    to_stored = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(axes))
    stored = nibabel.orientations.apply_orientation(lps, to_stored)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nibabel.orientations.inv_ornt_aff(to_stored, lps.shape)
    return kind(stored, affine).to_bytes()


def dicom(position: int, *, frames: int = 1, series: str = "1.2.3", **elements) -> bytes:
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SeriesInstanceUID, header.InstanceNumber = series, 100 - position
    header.Rows, header.Columns, header.BitsAllocated, header.BitsStored, header.HighBit = HEIGHT, WIDTH, 16, 16, 15
    header.PixelRepresentation, header.SamplesPerPixel, header.PhotometricInterpretation = 1, 1, "MONOCHROME2"
    header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * position]
    if frames > 1:
        header.NumberOfFrames = frames
    header.PixelData = BLOCK[position : position + frames].tobytes()
    for name, value in elements.items():
        setattr(header, name, value)
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


SERIES = [dicom(position) for position in (3, 0, 4, 1, 2)]

WHOLE = {
    "NIfTI": nifti,
    "NIfTI, right to left and back to front": lambda: nifti("RAS"),
    "NIfTI, sagittal": lambda: nifti("PSR"),
    "NIfTI, coronal": lambda: nifti("LIP"),
    "NIfTI 2": lambda: nifti(kind=nibabel.Nifti2Image),
    "NIfTI of real numbers": lambda: nifti(dtype=np.float32),
    "NIfTI, compressed": lambda: gzip.compress(nifti("RAS")),
    "DICOM of many frames": lambda: dicom(0, frames=N),
    "DICOM series in a zip": lambda: zipped({f"a/{i}.dcm": data for i, data in enumerate(SERIES)} | {"README": b"hello"}),
    "TIFF": lambda: tiff(BLOCK, photometric="minisblack"),
    "TIFF, compressed": lambda: tiff(BLOCK, photometric="minisblack", compression="zlib"),
    "ImageJ": lambda: tiff(BLOCK.astype(np.float32), imagej=True),
}


def check_whole(frames) -> None:
    assert (frames.n_frames, frames.n_grid, frames.size_hw) == (N, N, (HEIGHT, WIDTH))
    expected = by_percentiles(BLOCK)
    forward = dict(frames.stream(0, N - 1))
    assert list(forward) == list(range(N))
    for idx, image in forward.items():
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, np.repeat(expected[idx][:, :, None], 3, axis=2)), f"slice {idx}"
        assert np.array_equal(frames.read(idx), image)
    assert [(idx, image.tobytes()) for idx, image in frames.stream(0, N - 1, reverse=True)] == [
        (idx, forward[idx].tobytes()) for idx in range(N)[::-1]
    ]


@pytest.mark.parametrize("kind", WHOLE)
def test_slices_come_in_the_patients_order_through_one_window(clips, kind):
    n_open = len(list(OPEN_FILES.iterdir())) if OPEN_FILES.is_dir() else 0
    with clips.open(WHOLE[kind](), "volume") as frames:
        check_whole(frames)
        assert (frames.frame_of_grid(3), frames.grid_of_frame(3)) == (3, range(3, 4))
        assert frames.frame_hash(3) != frames.frame_hash(2)
        frames.close()
    assert not n_open or len(list(OPEN_FILES.iterdir())) == n_open


def test_a_series_of_files_is_sorted_by_where_its_slices_lie(clips):
    with clips.open(SERIES, "volume") as frames:
        check_whole(frames)


def test_without_places_a_series_is_sorted_by_instance_number(clips):
    files = [dicom(i, ImagePositionPatient=None, InstanceNumber=i + 1) for i in (2, 0, 1, 4, 3)]
    with clips.open(files, "volume") as frames:
        check_whole(frames)


def test_the_window_of_a_dicom_file_is_used(clips):
    files = [dicom(i, WindowCenter=[40, 500], WindowWidth=[400, 2000], RescaleSlope=2, RescaleIntercept=-10) for i in range(N)]
    with clips.open(files, "volume") as frames:
        assert np.array_equal(frames.read(2)[:, :, 0], shades(BLOCK[2] * 2.0 - 10, 40 - 0.5 - 199.5, 40 - 0.5 + 199.5))


def test_monochrome1_is_shown_inverted(clips):
    with clips.open(dicom(0, frames=N, PhotometricInterpretation="MONOCHROME1"), "volume") as frames:
        low, high = np.percentile(BLOCK, (0.5, 99.5))
        assert np.abs(frames.read(1)[:, :, 0].astype(int) - (255 - shades(BLOCK[1], low, high).astype(int))).max() <= 1


def test_eight_bit_stacks_are_shown_as_they_are(clips):
    grey = RNG.integers(0, 256, (N, HEIGHT, WIDTH), dtype=np.uint8)
    colour = RNG.integers(0, 256, (N, HEIGHT, WIDTH, 3), dtype=np.uint8)
    with clips.open(tiff(grey, photometric="minisblack"), "volume") as frames:
        assert np.array_equal(frames.read(3)[:, :, 1], grey[3])
    with clips.open(tiff(colour, photometric="rgb"), "volume") as frames:
        assert np.array_equal(frames.read(3), colour[3])


def test_a_window_survives_values_that_are_no_numbers_and_flat_volumes():
    assert sampled_window(2, lambda _: np.full((4, 4), 7)) == Window(7.0, 8.0)
    assert sampled_window(1, lambda _: np.full((4, 4), np.nan)) == Window(0.0, 1.0)
    assert to_rgb(np.array([[np.nan, -np.inf, np.inf, 0.5]]), Window(0.0, 1.0))[0, :, 0].tolist() == [0, 0, 255, 128]
    dot = np.zeros((100, 100))
    dot[5, 5] = 9.0
    assert sampled_window(1, lambda _: dot) == Window(0.0, 9.0)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"<html>login</html>", "not a volume"),
        (b"", "not a volume"),
        (nifti()[:900], "damaged, truncated"),
        (gzip.compress(nifti())[:200], "damaged or truncated"),
        (gzip.compress(b"hello" * 200), "damaged, truncated"),
        (dicom(0, frames=N)[:700], "damaged, truncated"),
        (tiff(BLOCK)[:300], "damaged, truncated"),
        (zipped({"a.txt": b"hello"}), "without DICOM files"),
        (zipped({"a": dicom(0)})[:300], "damaged, truncated"),
        (zipped({"a": dicom(0), "b": dicom(1, series="1.2.4")}), "2 series"),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)).to_bytes(), "three dimensions"),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)).to_bytes(), "plain numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_whole_volume_is_refused(clips, data, match):
    with pytest.raises(VideoUnreadableError, match=match), clips.open(data, "volume") as frames:
        list(frames.stream(0, frames.n_frames - 1))


def test_a_compression_that_is_not_read_here_is_named(clips):
    data = dicom(0, PixelData=pydicom.encaps.encapsulate([b"no picture"]))
    header = pydicom.dcmread(io.BytesIO(data))
    header.file_meta.TransferSyntaxUID = JPEG2000
    header["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    header.save_as(file)
    with pytest.raises(VideoUnreadableError, match=r"damaged|JPEG 2000"):
        clips.open(file.getvalue(), "volume")


def test_files_of_a_series_are_dicom(clips):
    with pytest.raises(VideoUnreadableError, match="not a DICOM file"):
        clips.open([dicom(0), nifti()], "volume")


@pytest.mark.parametrize("kind", WHOLE)
def test_too_many_pixels_or_slices_are_refused(clips, kind):
    clips.settings = dataclasses.replace(clips.settings, video_max_pixels=HEIGHT * WIDTH - 1)
    with pytest.raises(VideoTooLargeError, match="SAM2_VIDEO_MAX_PIXELS"):
        clips.open(WHOLE[kind](), "volume")
    clips.settings = dataclasses.replace(clips.settings, video_max_pixels=HEIGHT * WIDTH, video_max_frames=N - 1)
    with pytest.raises(VideoTooLargeError, match=r"SAM2_VIDEO_MAX_(FRAMES|BYTES)"):
        clips.open(WHOLE[kind](), "volume")


@pytest.mark.parametrize(
    "data", [gzip.compress(nifti() + bytes(100_000)), zipped({"a": dicom(0) + bytes(100_000)})], ids=["NIfTI, compressed", "zip"]
)
def test_what_unpacks_to_too_much_is_refused(clips, data):
    clips.settings = dataclasses.replace(clips.settings, video_max_bytes=len(data))
    with pytest.raises(VideoTooLargeError, match="unpacks to more than"):
        clips.open(data, "volume")


def test_a_missing_package_is_named_with_the_way_to_install_it(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(VolumeSupportError, match=r"nibabel .* sam2-label-studio\[medical\]"):
        clips.open(nifti(), "volume")


def test_slices_past_the_end_are_refused(clips):
    with clips.open(nifti(), "volume") as frames:
        for refused in (lambda: frames.read(N), lambda: frames.stream(0, N), lambda: frames.frame_of_grid(-1)):
            with pytest.raises(VideoFrameError, match="has 5"):
                refused()
