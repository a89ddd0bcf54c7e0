"""Fuzzing of the scan readers and the upload page with damaged files.

    python -m benchmarks.fuzz --minutes=10

Valid files of all formats are damaged at random, read, and sent to the page. Anything but a volume
or one line of InputError counts as a crash, 20 seconds as a hang, a file outside of the page's
folder, or left in it, as a stray.
"""

import io
import shutil
import struct
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from absl import flags, logging

import ctclip_jax
from benchmarks import measure
from ctclip_jax.demo.analysis import Analyses
from data_pipelines import command_line
from data_pipelines.errors import InputError
from data_pipelines.formats.stored import limited_bytes
from data_pipelines.sources.phantoms.layout import write_samples
from tests.dicom_series import chest_slices, enhanced
from tests.dicom_series import write as write_dicom
from tests.tiny_run import write_tiny_export

MINUTES = flags.DEFINE_float("minutes", 10.0, "Duration.")
SEED = flags.DEFINE_integer("seed", 0, "Random seed.")
HANG_SECONDS, MAX_BYTES = 20.0, 64 << 20
NASTY = (b"\x00" * 8, b"\xff" * 8, b"../../../../tmp/stray", struct.pack("<q", -1), b"\x7f\xff" * 4)


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Small valid scans by file suffix."""
    scan = write_samples(folder / "samples", count=1, seed=0).parent / "sample_1.nii.gz"
    image = nib.load(scan)
    small = image.slicer[::2, ::2]
    series = write_dicom(folder / "dicom", chest_slices("LPS", spacing=(12.0, 12.0, 20.0)))
    multiframe = folder / "multiframe"
    enhanced(chest_slices("LPS", spacing=(12.0, 12.0, 20.0))).save_as(multiframe)
    disc = write_dicom(folder / "disc" / "DICOM" / "SE1", chest_slices(series="1.3")).parents[1]
    shutil.copytree(series, disc / "DICOM" / "SE2")
    (disc / "DICOMDIR").write_bytes(b"an index")
    arrays = io.BytesIO()
    np.savez(arrays, ct=np.asarray(small.dataobj))
    dicom = next(series.iterdir()).read_bytes()
    return {
        ".nii.gz": [scan.read_bytes()],
        ".nii": [small.to_bytes(), image.to_bytes(), nib.Nifti2Image.from_image(small).to_bytes()],
        ".nrrd": [
            itk(small, folder / f"{name}.nrrd", name == "packed") for name in ("plain", "packed")
        ],
        ".mha": [
            itk(small, folder / f"{name}.mha", name == "packed") for name in ("plain", "packed")
        ],
        ".npz": [arrays.getvalue()],
        ".dcm": [dicom, multiframe.read_bytes()],
        ".zip": [zipped(series), zipped(disc)],
    }


def zipped(folder: Path) -> bytes:
    """An archive of a folder."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive.getvalue()


def zip_of_damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The archive with one of its files damaged, under a checksum that is right."""
    archive = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as valid,
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        names = [name for name in valid.namelist() if not name.endswith("/")]
        chosen = names[rng.integers(len(names))]
        for name in names:
            member = valid.read(name)
            file.writestr(name, damaged(member, rng) if name == chosen else member)
    return archive.getvalue()


def itk(image: nib.Nifti1Image, path: Path, compressed: bool) -> bytes:
    """The image as SimpleITK writes it into a file with this suffix."""
    voxels = sitk.GetImageFromArray(np.asarray(image.dataobj).T)
    voxels.SetSpacing(list(map(float, image.header.get_zooms())))
    sitk.WriteImage(voxels, path, useCompression=compressed)
    return path.read_bytes()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips bits; overwrites, deletes, inserts or duplicates bytes; mostly near the start, where
    headers are."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        near = int(min(len(changed), 2 ** rng.uniform(3, np.log2(len(changed) + 8))))
        at, size = int(rng.integers(max(near, 1))), int(2 ** rng.uniform(0, 8))
        damage = rng.integers(6)
        if damage == 0:
            changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.integers(8))])
        elif damage == 1:
            changed[at : at + size] = rng.bytes(size)
        elif damage == 2:
            nasty = NASTY[rng.integers(len(NASTY))]
            changed[at : at + len(nasty)] = nasty
        elif damage == 3:
            del changed[at : at + size]
        elif damage == 4:
            changed[at:at] = changed[at : at + size]
        else:
            del changed[at:]
        if not changed:
            return b"\x00"
    return bytes(changed)


def nasty_zip(rng: np.random.Generator) -> bytes:
    """An archive with paths outside of its folder, a link, or a zip bomb."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../" * int(rng.integers(1, 9)) + "tmp/stray", rng.bytes(9))
        archive.writestr("/tmp/stray", b"stray")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/tmp/stray")
        if rng.random() < 0.2:
            archive.writestr("bomb", bytes(MAX_BYTES + 1))
    return buffer.getvalue()


def main() -> None:
    logging.set_verbosity(logging.FATAL)
    rng, counts, crashes, slowest = np.random.default_rng(SEED.value), Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        valid, inbox = seeds(folder), folder / "uploads"
        inbox.mkdir()
        model = ctclip_jax.load(write_tiny_export(folder))
        analyses = Analyses(
            model, model.zero_shot_classifier(), max_upload_bytes=MAX_BYTES, keep_uploads=False
        )
        elsewhere = {path for path in folder.iterdir()}
        end = time.monotonic() + 60 * MINUTES.value
        while time.monotonic() < end:
            suffix = list(valid)[rng.integers(len(valid))]
            content = valid[suffix][rng.integers(len(valid[suffix]))]
            kind = rng.random() if suffix == ".zip" else 1.0
            if kind < 0.2:
                content = nasty_zip(rng)
            elif kind < 0.7:
                content = zip_of_damaged(content, rng)
            else:
                content = damaged(content, rng)
            path, start = inbox / f"x{suffix}", time.monotonic()
            path.write_bytes(content)
            try:
                with limited_bytes(MAX_BYTES):
                    model.prepare(path)
                counts[f"{suffix} read"] += 1
            except InputError as error:
                counts[f"{suffix} refused"] += 1
                if "\n" in str(error):
                    crashes.append(f"{suffix}: more than a line: {error!r}"[:300])
            except Exception as error:
                crashes.append(f"{suffix}: {type(error).__name__}: {error}"[:300])
                (folder / f"crash_{len(crashes)}{suffix}").write_bytes(content)
                elsewhere.add(folder / f"crash_{len(crashes)}{suffix}")
            path.unlink()
            if rng.random() < 0.05:  # also through the worker of the page
                path.write_bytes(content)
                analysis = analyses.start(path, name=f"x{suffix}")
                while analysis.state not in ("done", "failed"):
                    time.sleep(0.005)
                    if time.monotonic() - start > HANG_SECONDS:
                        crashes.append(f"{suffix}: hangs")
                        break
                counts[f"page {analysis.state}"] += 1
                if "internal error" in analysis.error:
                    crashes.append(analysis.error[:300])
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0)
            if stray := [*set(folder.iterdir()) - elsewhere, *inbox.iterdir()]:
                crashes.append(f"stray: {stray}")
                break
        if Path("/tmp/stray").exists():
            crashes.append("stray: /tmp/stray")
    measure.save(
        "fuzz",
        {
            "minutes": MINUTES.value,
            "files": sum(counts.values()),
            "counts": dict(sorted(counts.items())),
            "slowest_seconds": round(slowest, 2),
            "peak_gib": round(measure.peak_gib(), 2),
            "crashes": len(crashes),
            "first_crashes": sorted(set(crashes))[:20],
        },
    )


if __name__ == "__main__":
    command_line.run(main)
