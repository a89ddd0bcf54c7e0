"""Small DICOM series, for tests."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from tests.scan_tree import chest_hu

LPS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1)}
LPS["I"] = (0, 0, -1)
SPACING_LPS = (5.0, 6.0, 8.0)


def name_of(k: int) -> str:
    """Names without suffix, whose order is not that of the slices."""
    return f"IM{41 * k % 97:02d}"


def chest_slices(
    axes: str = "LPS", *, spacing=SPACING_LPS, series="1.2", hu: np.ndarray | None = None
) -> list[Dataset]:
    """The chest of `scan_tree`, or `hu`, whose axes are LPS; columns, rows and slices are counted
    toward the three letters of `axes`."""
    directions = np.array([LPS[letter] for letter in axes])
    order = np.abs(directions).argmax(axis=1)
    backward = np.flatnonzero(directions.sum(axis=1) < 0)
    voxels = np.flip((chest_hu() if hu is None else hu).transpose(order), backward)
    x, y, z = np.take(spacing, order)
    slices = []
    for k in range(voxels.shape[2]):
        ct = Dataset()
        ct.file_meta = FileMetaDataset()
        ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ct.SOPClassUID, ct.SOPInstanceUID, ct.SeriesInstanceUID = (
            CTImageStorage,
            f"{series}.{k}",
            series,
        )
        ct.Modality, ct.ImageType, ct.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 1
        ct.ImagePositionPatient = (directions[2] * k * z + (-50, -60, 70)).tolist()
        ct.ImageOrientationPatient = directions[:2].ravel().tolist()
        ct.PixelSpacing = [y, x]
        ct.RescaleSlope, ct.RescaleIntercept = 1, 0
        ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
        ct.Columns, ct.Rows = voxels.shape[:2]
        store(ct, voxels[:, :, k].T)
        slices.append(ct)
    return slices


def store(ct: Dataset, pixels: np.ndarray) -> None:
    ct.BitsAllocated = ct.BitsStored = 8 * pixels.itemsize
    ct.HighBit, ct.PixelRepresentation = ct.BitsStored - 1, int(pixels.dtype.kind == "i")
    ct.add_new("PixelData", "OW", pixels.tobytes())


def write(folder: Path, slices: list[Dataset], *, prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, ct in enumerate(slices):
        ct.save_as(folder / f"{prefix}{name_of(k)}", enforce_file_format=True)
    return folder


def enhanced(slices: list[Dataset]) -> Dataset:
    """The slices as the frames of one Enhanced CT file, each with its own position and scale."""
    first = slices[0]
    ct = Dataset()
    ct.file_meta = FileMetaDataset()
    ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ct.SOPClassUID, ct.SOPInstanceUID = EnhancedCTImageStorage, f"{first.SeriesInstanceUID}.99"
    ct.Modality, ct.ImageType = "CT", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ct.StudyInstanceUID, ct.SeriesInstanceUID = "1.1", first.SeriesInstanceUID
    ct.FrameOfReferenceUID, ct.SeriesNumber, ct.InstanceNumber = "1.9", 7, 1
    ct.PatientID, ct.PatientName, ct.PatientBirthDate, ct.PatientSex = "P", "P", "", ""
    ct.StudyID, ct.StudyDate, ct.StudyTime = "", "", ""
    ct.AccessionNumber, ct.ReferringPhysicianName, ct.Manufacturer = "", "", ""
    ct.ContentDate, ct.ContentTime = "20200101", "000000"
    ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
    ct.Rows, ct.Columns, ct.NumberOfFrames = first.Rows, first.Columns, len(slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = [group(first, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [group(first, "PixelSpacing")]
    ct.SharedFunctionalGroupsSequence = [shared]
    ct.PerFrameFunctionalGroupsSequence = [Dataset() for _ in slices]
    for frame, plane in zip(ct.PerFrameFunctionalGroupsSequence, slices, strict=True):
        frame.FrameContentSequence = [Dataset()]
        frame.PlanePositionSequence = [group(plane, "ImagePositionPatient")]
        scale = group(plane, "RescaleSlope", "RescaleIntercept", "RescaleType")
        if len(scale):
            frame.PixelValueTransformationSequence = [scale]
    store(ct, np.stack([plane.pixel_array for plane in slices]))
    return ct


def group(source: Dataset, *names: str) -> Dataset:
    """A functional group with those of the elements that the source has."""
    item = Dataset()
    for name in names:
        if name in source:
            item[name] = source[name]
    return item
