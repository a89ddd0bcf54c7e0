"""Enhanced CT: a series in one multi-frame DICOM file, read by highdicom (extra `formats`)."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.dicom_header import DAMAGE, DicomFile, read_scale
from data_pipelines.formats.dicom_values import AIR_HU, check_scales, fill_padding, padding_notes
from data_pipelines.formats.stored import StoredVolume, check_size


def read_multiframe(file: DicomFile, *, notes: Sequence[str] = ()) -> StoredVolume:
    """Reads an Enhanced CT or Legacy Converted Enhanced CT; float32 in HU, each frame rescaled by
    its own slope and intercept."""
    with naming_file(file.path, DAMAGE):
        try:
            import highdicom
        except ImportError:
            raise InputError(
                "Enhanced CT (multi-frame DICOM): pip install 'ctclip-jax[formats]' to read it"
            ) from None
        check_size((*file.plane.shape, file.num_frames), np.dtype(np.float32), copies=2)
        content = file.path.read_bytes()
        image = highdicom.imread(io.BytesIO(content))
        if image.get_volume_geometry(allow_duplicate_positions=False) is None:
            cause = "missing frames, several phases or a tilted gantry"
            raise InputError(f"frames are not the evenly spaced slices of one volume ({cause})")
        slopes, intercepts, scales = zip(*_frame_scales(image), strict=True)
        notes = [*notes, *check_scales(scales, [f"frame {k + 1}" for k in range(len(scales))])]
        volume = _volume(image, rescale=True)
        if file.plane.padding is not None:
            # Padding is recognized by stored values; those of tissue by the first frame's scale.
            stored = _volume(image, rescale=False).array.astype(file.plane.pixel_type)
            plane = dataclasses.replace(file.plane, slope=slopes[0], intercept=intercepts[0])
            frames = zip(volume.array, stored, strict=True)
            num_padding = sum(fill_padding(*frame, plane, air=AIR_HU) for frame in frames)
            notes += padding_notes(plane, num_padding / stored.size)
    if volume.affine[:3, 0] @ file.plane.normal < 0:  # slices along the normal, as in a series
        volume = volume.flip_spatial(0)
    affine = volume.affine[:, [2, 1, 0, 3]]  # highdicom's axes are slices, rows, columns
    affine[:2] *= -1  # and its vectors LPS
    return StoredVolume(
        voxels=volume.array.transpose(2, 1, 0),
        affines={"DICOM": affine},
        spacing_xyz=tuple(map(float, nib.affines.voxel_sizes(affine))),
        sha256=hashlib.sha256(content).hexdigest(),
        notes=tuple(notes),
    )


def _volume(image: Any, *, rescale: bool) -> Any:
    """The `highdicom.Volume` of an `Image`: slices, rows and columns, rescaled or as stored."""
    return image.get_volume(
        dtype=np.float32 if rescale else np.int32,
        apply_real_world_transform=False,
        apply_modality_transform=None if rescale else False,
        apply_presentation_lut=False,
    )


def _frame_scales(image: pydicom.Dataset) -> Iterator[tuple[float, float, str]]:
    """The scale of each frame: highdicom takes a frame that has none for one in HU."""
    name = "PixelValueTransformationSequence"
    shared = image.SharedFunctionalGroupsSequence[0]
    for frame in image.PerFrameFunctionalGroupsSequence:
        groups = (group[name].value[0] for group in (frame, shared) if name in group)
        yield read_scale(next(groups, image))
