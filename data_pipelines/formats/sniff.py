"""File types by content: what a file is, whatever its name says."""

import re
import zlib

from etils import epath

START_BYTES = 4096
"""How much of a file `describe_content` needs."""

_GZIP = b"\x1f\x8b"
_READ_GZIPPED = ("NIfTI-1", "NIfTI-2", "Analyze 7.5", "")
_SIGNATURES = (  # byte offset, pattern, what the file is; the first match counts
    (344, rb"n[i+]1\0", "NIfTI-1"),
    (4, rb"n[i+]2\0", "NIfTI-2"),
    (0, rb"\x5c\x01\0\0|\0\0\x01\x5c", "Analyze 7.5"),
    (128, rb"DICM", "DICOM"),
    (0, rb"NRRD", "NRRD"),
    (0, rb"(ObjectType|NDims|Comment) *=", "MetaImage"),
    (0, rb"PK\x03\x04[^\0]?.{0,60}\.npy", "a NumPy archive"),
    (0, rb"PK\x03\x04.*xl/", "an Excel workbook"),
    (0, rb"PK\x03\x04.*\[Content_Types\]\.xml", "an Office document"),
    (0, rb"PK(\x03\x04|\x05\x06)", "a zip archive"),
    (0, rb"\xd0\xcf\x11\xe0", "an old Excel workbook or other Office document"),
    (0, rb"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches the file itself)"),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?html", "an HTML page, as a failed download leaves"),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|Error>)", "XML, as a failed download leaves"),
    (0, rb"%PDF", "a PDF document"),
    (0, rb"\xff\xd8\xff", "a JPEG image"),
    (0, rb"\x89PNG", "a PNG image"),
    (0, rb"GIF8|BM.{4}\0{4}|II\*\0|MM\0\*", "an image (GIF, BMP or TIFF)"),
    (257, rb"ustar", "a tar archive"),
    (0, rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive"),
    (0, rb"\x89HDF|MATLAB 5", "an HDF5 or MATLAB file"),
    (0, rb"\x93NUMPY", "a NumPy array"),
    (0, rb"\x80[\x02-\x05]", "a Python pickle"),
    (0, rb"\0{64}", "zeros, as an interrupted copy leaves"),
    (0, rb"\xff\xfe|\xfe\xff", "UTF-16 text"),
    (0, rb"[\t\n\r\x20-\x7e\x80-\xff]*\Z", "text"),
)


def describe_file(path: epath.Path) -> str:
    """`describe_content` of the start of a file."""
    with path.open("rb") as file:
        return describe_content(file.read(START_BYTES))


def describe_content(start: bytes) -> str:
    """Returns what a file is by its first `START_BYTES`, such as "a PDF document"; of a gzip file,
    what is compressed in it. Empty if unknown."""
    if not start:
        return "an empty file"
    if start.startswith(_GZIP):
        try:
            inner = zlib.decompressobj(wbits=31).decompress(start, START_BYTES)
        except zlib.error:
            inner = b""
        if not inner or inner.startswith(_GZIP):
            return "a gzip file in a gzip file" if inner else "a damaged gzip file"
        content = describe_content(inner)
        return content if content in _READ_GZIPPED else f"{content} in a gzip file"
    for offset, pattern, description in _SIGNATURES:
        if re.compile(pattern, re.DOTALL).match(start, offset):
            return description
    return ""
