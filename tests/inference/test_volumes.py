"""A scan in every form that a model takes gives the same; other units are refused."""

import copy
import pickle

import jax
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import ctclip_jax
from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.inference import heatmaps, volumes
from ctclip_jax.inference.reference import Reference
from data_pipelines.errors import InputError
from data_pipelines.geometry import orientation_of
from data_pipelines.reports import LABELS
from data_pipelines.resample import Geometry
from data_pipelines.sources.case import CaseRecord
from tests.inference.conftest import GEOMETRY
from tests.scan_tree import chest_hu

FINDING = "Pleural effusion"


@pytest.fixture(scope="module")
def model(state, vocabulary, tmp_path_factory):
    """The tiny model, on a grid that a chest fits into."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tensors(path, state)
    return ctclip_jax.load(path, **GEOMETRY, spacing=(8.0, 4.0, 4.0), tokenizer=vocabulary)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two chests as files, stored along other axes."""
    folder = tmp_path_factory.mktemp("scans")
    for name, hu in (("a", chest_hu()), ("b", chest_hu()[::-1, :, ::-1])):
        image = nib.Nifti1Image(hu.astype(np.int16), np.diag([-6.0, -6.0, 8.0, 1.0]))
        axes = nib.orientations.axcodes2ornt("LPS" if name == "a" else "SRA")
        start = nib.orientations.axcodes2ornt("LPS")
        moved = image.as_reoriented(nib.orientations.ornt_transform(start, axes))
        nib.save(moved, folder / f"{name}.nii.gz")
    return [folder / "a.nii.gz", folder / "b.nii.gz"]


def test_one_scan_in_every_form_is_the_same(model, scans):
    prepared, path = model.prepare(scans[0]), scans[0]
    case = CaseRecord(volume_name="name", patient="", scan="", paths=(path,))
    forms = {
        str(path): [str(path), path, [path], (str(path),), prepared, [prepared]],
        "name": [case, [case]],
        0: [prepared.volume, prepared.volume[None], [prepared.volume], prepared.volume[None, None]],
    }
    expected = model.encode_image(prepared.volume[None])
    assert expected.shape == (1, 16) and expected.dtype == np.float32
    probabilities = np.asarray(model.detect(prepared.volume[None]))
    for name, values in forms.items():
        for form in values:
            np.testing.assert_array_equal(model.encode_image(form), expected)
            detection = model.detect(form)
            np.testing.assert_array_equal(detection, probabilities)
            assert detection.scans == (name,)


def test_a_list_may_mix_paths_and_prepared_scans(model, scans):
    mixed = [scans[1], model.prepare(scans[0]), str(scans[1])]
    expected = np.concatenate([model.encode_image(scan) for scan in mixed])
    np.testing.assert_allclose(model.encode_image(mixed), expected, rtol=0, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    assert model.detect(mixed).scans == (str(scans[1]), str(scans[0]), str(scans[1]))
    assert model.patch_features(mixed).shape[0] == 3


def test_scans_are_read_as_many_at_a_time_as_are_computed(model, scans):
    opened = []

    def prepare(scan):
        opened.append(scan)
        return model.prepare(scan)

    parts = volumes.batches([scans[0]] * 5, prepare, size=2)
    assert not opened
    assert len(next(parts)) == 2 and len(opened) == 2
    assert [len(part) for part in parts] == [2, 1]


def test_a_detection_is_its_array_with_names(model, scans):
    detection = model.detect(scans, labels=LABELS[:3])
    array = detection.probabilities
    frame = detection.to_frame()
    assert list(frame.index) == [str(path) for path in scans] and list(frame) == list(LABELS[:3])
    np.testing.assert_array_equal(frame, array)
    assert detection.shape == (2, 3) and detection.dtype == np.float32 and len(detection) == 2
    assert isinstance(np.asarray(detection), np.ndarray)
    assert np.asarray(detection, np.float64).dtype == np.float64
    np.testing.assert_array_equal(detection[:, 1], array[:, 1])
    np.testing.assert_array_equal([row for row in detection], array)
    np.testing.assert_array_equal(detection > 0.5, array > 0.5)
    np.testing.assert_array_equal(1 - detection, 1 - array)
    np.testing.assert_array_equal(detection.max(axis=1), array.max(axis=1))
    np.testing.assert_array_equal(np.stack([detection, detection]), np.stack([array, array]))
    pd.testing.assert_frame_equal(pd.DataFrame(detection), pd.DataFrame(array))
    for again in (copy.deepcopy(detection), pickle.loads(pickle.dumps(detection))):
        np.testing.assert_array_equal(again, array)
        assert again.labels == detection.labels
    assert LABELS[0] in repr(detection)
    with pytest.raises(AttributeError):
        detection.absent  # noqa: B018


def test_a_detection_has_ranks_among_reference_volumes(model, scans):
    assert model.detect(scans).ranks is None
    latents = model.encode_image(scans)
    reference = Reference("2 volumes", latents=latents)
    compared = ctclip_jax.Model(
        model.config, model.variables, tokenizer=model.tokenizer, reference=reference
    )
    ranks = compared.detect(scans).ranks
    assert ranks.shape == (2, 18) and np.sort(ranks, axis=0).tolist() == [[0.0] * 18, [0.5] * 18]


def test_a_heatmap_lies_on_the_grid_of_its_scan(model, scans):
    image = model.heatmap(scans[1], FINDING)
    stored, prepared = nib.load(scans[1]), model.prepare(scans[1])
    assert image.shape == stored.shape
    np.testing.assert_allclose(image.affine, stored.affine, atol=1e-5)
    assert orientation_of(image.affine) == "SRA"
    classifier = model.zero_shot_classifier()
    features = model.patch_features(prepared)
    _, contributions = model.attribute(features, classifier.kernel)
    column = LABELS.index(FINDING)
    expected, _ = heatmaps.to_scan_space(contributions[0, column], prepared, model.geometry)
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=0, atol=1e-6)
    assert len(np.unique(image.get_fdata())) > 8
    assert FINDING in image.header["descrip"].item().decode()


def test_a_heatmap_of_an_array_lies_on_the_grid_of_the_model(model, scans):
    prepared = model.prepare(scans[0])
    image = model.heatmap(prepared.volume, FINDING)
    f, h, w = model.geometry.shape
    dz, dx, dy = model.geometry.spacing
    assert image.shape == (h, w, f)
    np.testing.assert_array_equal(image.affine, np.diag([-dx, -dy, dz, 1]))
    patch = np.prod(model.config.image.patch)
    classifier = model.zero_shot_classifier()
    logits = model.encode_image(prepared) @ classifier.kernel
    sums = image.get_fdata().sum() / patch
    np.testing.assert_allclose(sums, logits[0, LABELS.index(FINDING)], atol=1e-5)


def test_heatmaps_of_several_scans_are_a_list(model, scans):
    one = model.heatmap(model.prepare(scans[0]), "words of my own")
    for several in (scans, [model.prepare(scan) for scan in scans]):
        images = model.heatmap(several, "words of my own")
        assert [image.shape for image in images] == [nib.load(scan).shape for scan in scans]
        np.testing.assert_array_equal(images[0].get_fdata(), one.get_fdata())
    arrays = np.stack([model.prepare(scan).volume for scan in scans])
    assert len(model.heatmap(arrays, FINDING)) == 2
    assert len(model.heatmap(arrays[:1], FINDING)) == 1


def test_the_labels_and_one_line_of_a_model(model):
    assert ctclip_jax.LABELS is LABELS and model.labels == LABELS
    assert repr(model) == (
        "Model(ct_vit, voxels (z, x, y): (20, 40, 40) of (8.0, 4.0, 4.0) mm, 18 labels,"
        f" 0.1 M parameters, {len(jax.devices())} x cpu)"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("low, high", [(-1024, 3071), (-1000, 400), (0, 40)])
def test_floats_in_hu_are_refused_with_the_unit(model, dtype, low, high):
    hu = np.linspace(low, high, 20 * 40 * 40).reshape(1, 20, 40, 40).astype(dtype)
    with pytest.raises(InputError, match=r"look like HU; expected floats in \[-1, 1\]"):
        model.encode_image(hu)
    model.encode_image(hu / 1000)
    assert np.isfinite(model.detect(hu / 1000)).all()


@pytest.mark.parametrize("padding", [-1000, -1024, -2000, -2048, -3024])
def test_integers_in_hu_are_refused_where_they_cannot_be_steps(model, scans, padding):
    steps = model.prepare(scans[0]).volume
    hu = np.rint(steps / 16).astype(np.int16)
    assert hu.min() == -1000
    hu[hu == -1000] = padding
    for call in (model.encode_image, model.detect, lambda v: model.heatmap(v, FINDING)):
        with pytest.raises(InputError, match=f"int16 from {padding} to .* look like HU; .*1/16 HU"):
            call(hu)
    model.encode_image(np.zeros_like(hu))


@pytest.mark.parametrize("window", [(-1000, 1000), (-1350, 150), (-160, 240), (-2000, 2000)])
@pytest.mark.parametrize("per_hu", [1, 16])
def test_a_chest_in_steps_is_taken_in_every_window(window, per_hu):
    """With noise in whole HU, as prepared, or finer, as the published loaders round."""
    geometry = Geometry((20, 40, 40), (8.0, 4.0, 4.0), window)
    hu = chest_hu() + np.random.default_rng(0).normal(0, 20, chest_hu().shape)
    steps = 16 // per_hu * np.rint(per_hu * np.clip(hu, *window)).astype(np.int16)
    moved = np.resize(steps.transpose(2, 0, 1), (1, *geometry.shape))
    assert volumes.check_volumes(moved, geometry) is moved


def test_a_prepared_scan_without_air_is_taken():
    """One of the legs, that fills the grid."""
    geometry = Geometry((20, 40, 40))
    fat = 16 * np.random.default_rng(0).integers(-150, 60, (1, *geometry.shape), np.int16)
    assert fat.min() == -2400 and volumes.check_volumes(fat, geometry) is fat


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused_with_their_count(model, value):
    arrays = np.zeros((2, 20, 40, 40), np.float32)
    arrays[1, 3, 5, 7:10] = value
    message = "volumes: float32: 3 of .*000 numbers are NaN or infinite"
    for call in (model.encode_image, model.detect, lambda v: model.heatmap(v, FINDING)):
        with pytest.raises(InputError, match=message):
            call(arrays)


def test_a_model_can_be_put_on_chosen_devices(state, vocabulary, model, tmp_path, scans):
    chosen = jax.devices()[1:3]
    one = ctclip_jax.Model(model.config, model.variables, tokenizer=model.tokenizer, devices=chosen)
    assert list(one.mesh.devices.flat) == chosen and repr(one).endswith("2 x cpu)")
    np.testing.assert_allclose(one.encode_image(scans), model.encode_image(scans), atol=1e-6)
