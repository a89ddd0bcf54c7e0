"""Descriptions of files by their content."""

import gzip
import io
import zipfile

import matplotlib.image
import nibabel as nib
import numpy as np
import openpyxl
import pytest

from data_pipelines.formats.sniff import START_BYTES, describe_content
from tests.dicom_series import chest_slices
from tests.dicom_series import write as write_dicom
from tests.scan_tree import chest_hu

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def npz():
    np.savez_compressed(buffer := io.BytesIO(), ct=chest_hu())
    return buffer.getvalue()


def zipped(name):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


def excel():
    openpyxl.Workbook().save(buffer := io.BytesIO())
    return buffer.getvalue()


def image(suffix):
    matplotlib.image.imsave(buffer := io.BytesIO(), np.zeros((9, 9)), format=suffix)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (nib.Nifti1Image(chest_hu(), np.eye(4)).to_bytes(), "NIfTI-1"),
        (gzip.compress(nib.Nifti2Image(chest_hu(), np.eye(4)).to_bytes()), "NIfTI-2"),
        (nib.AnalyzeHeader().binaryblock, "Analyze 7.5"),
        (nib.AnalyzeHeader(endianness=">").binaryblock, "Analyze 7.5"),
        (nib.nifti1.Nifti1PairHeader().binaryblock, "NIfTI-1"),
        (b"NRRD0004\n# Complete NRRD file format specification", "NRRD"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage"),
        (npz(), "a NumPy archive"),
        (excel(), "an Excel workbook"),
        (b"PK\x03\x04 [Content_Types].xml xl/workbook.xml", "an Excel workbook"),
        (zipped("scans/IM0001"), "a zip archive"),
        (LFS, "a Git LFS pointer (`git lfs pull` fetches the file itself)"),
        (b"\n<!DOCTYPE html>\n<html>", "an HTML page, as a failed download leaves"),
        (b"<Error><Code>AccessDenied</Code>", "XML, as a failed download leaves"),
        (image("png"), "a PNG image"),
        (image("jpg"), "a JPEG image"),
        (b"", "an empty file"),
        (gzip.compress(b"name,value\n1,2\n", mtime=0), "text"),
        (b"\x1f\x8b\x07damaged", "a damaged gzip file"),
        ("Befund: Rundherd, größer\n".encode("cp1252"), "text"),
        (bytes(5000), "zeros, as an interrupted copy leaves"),
        (np.random.default_rng(0).bytes(5000), ""),
    ],
)
def test_describe_content(content, description):
    assert describe_content(content[:START_BYTES]) == description


def test_dicom_is_known_without_its_suffix(tmp_path):
    file = next(write_dicom(tmp_path, chest_slices("LPS")).iterdir())
    assert describe_content(file.read_bytes()[:START_BYTES]) == "DICOM"
