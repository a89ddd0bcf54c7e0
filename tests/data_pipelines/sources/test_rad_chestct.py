import csv
import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.rad_chestct import read_collection
from tests.scan_tree import chest_hu

CONFIG = Path(__file__).parents[3] / "configs/labels/rad_chestct.py"
# As in the public tables.
NAMES = """
air_trapping airspace_disease aneurysm arthritis aspiration atelectasis atherosclerosis
bandlike_or_linear breast_implant breast_surgery bronchial_wall_thickening bronchiectasis
bronchiolectasis bronchiolitis bronchitis cabg calcification cancer cardiomegaly catheter_or_port
cavitation chest_tube clip congestion consolidation coronary_artery_disease cyst debris deformity
density dilation_or_ectasia distention emphysema fibrosis fracture gi_tube granuloma groundglass
hardware heart_failure heart_valve_replacement hemothorax hernia honeycombing infection infiltrate
inflammation interstitial_lung_disease lesion lucency lung_resection lymphadenopathy mass
mucous_plugging nodule nodulegr1cm opacity other_path pacemaker_or_defib pericardial_effusion
pericardial_thickening plaque pleural_effusion pleural_thickening pneumonia pneumonitis
pneumothorax postsurgical pulmonary_edema reticulation scarring scattered_calc scattered_nod
secretion septal_thickening soft_tissue staple stent sternotomy suture tracheal_tube transplant
tree_in_bud tuberculosis
"""
ABNORMALITIES = NAMES.split()
COLUMNS = [f"{name}*{place}" for name in ABNORMALITIES for place in ("heart", "left_upper")]
NODULE = {"Lung nodule": ("nodule",)}


def write_labels(folder, split, positive, changes=()):
    """The labels table of scans -> their positive columns; all else is 0 but for `changes`."""
    with (folder / f"img{split}_Abnormality_and_Location_Labels.csv").open("w") as file:
        writer = csv.DictWriter(file, ["NoteAcc_DEID", *COLUMNS], restval="0")
        writer.writeheader()
        for scan, columns in positive.items():
            row = {"NoteAcc_DEID": scan} | dict.fromkeys(columns, "1")
            writer.writerow(row | dict(changes))


def read(folder, split="valid", labels=NODULE, axes="IPL"):
    return read_collection(folder, split, labels=labels, axes=axes)


def config(variant=""):
    return runpy.run_path(str(CONFIG))["get_config"](variant)


def test_case(tmp_path):
    write_labels(tmp_path, "valid", {"val00002": [], "val00001": ["nodule*heart"]})
    collection = read(tmp_path)
    first, second = collection.cases
    assert collection.labels == ("Lung nodule",) and (first.labels, second.labels) == ((1,), (0,))
    assert (first.volume_name, first.patient, first.scan) == ("val00001",) * 3
    assert first.path() == tmp_path / "val00001.npz"
    assert (first.axes, first.spacing) == ("IPL", (0.8, 0.8, 0.8))
    assert math.isnan(first.slope) and math.isnan(first.intercept)
    assert first.findings == first.impressions == first.skip == "" and first.strata == {}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_each_split_has_its_table(tmp_path, split):
    write_labels(tmp_path, split, {"scan1": []})
    assert [case.volume_name for case in read(tmp_path, split).cases] == ["scan1"]
    with pytest.raises(InputError, match="unknown 'imgtrain'"):
        read(tmp_path, "imgtrain")


def test_label_is_any_abnormality_at_any_location(tmp_path):
    positive = {
        "a": ["nodule*heart"],
        "b": ["nodule*left_upper", "nodule*heart"],
        "c": ["nodulegr1cm*left_upper"],
        "d": ["scattered_nod*left_upper"],
    }
    write_labels(tmp_path, "valid", positive)
    labels = NODULE | {"Either": ("nodule", "nodulegr1cm")}
    cases = read(tmp_path, labels=labels).cases
    assert [case.labels for case in cases] == [(1, 1), (1, 1), (0, 1), (0, 0)]


def test_missing_cell_makes_a_label_unknown_unless_another_is_positive(tmp_path):
    positive = {"a": [], "b": ["nodule*heart"]}
    write_labels(tmp_path, "valid", positive, changes=[("nodule*left_upper", "")])
    assert [case.labels for case in read(tmp_path).cases] == [(UNKNOWN,), (1,)]


def test_unknown_abnormalities_are_an_input_error(tmp_path):
    write_labels(tmp_path, "valid", {"a": []})
    with pytest.raises(InputError, match="imgvalid_.*: no columns for the abnormality 'nod'"):
        read(tmp_path, labels={"Lung nodule": ("nodule", "nod")})
    with pytest.raises(InputError, match="label 'Lung nodule': has no abnormalities"):
        read(tmp_path, labels={"Lung nodule": ()})


def test_patients_and_strata_come_from_the_metadata(tmp_path):
    write_labels(tmp_path, "valid", {"val1": [], "val2": [], "val3": []})
    (tmp_path / "CT_Scan_Metadata_Complete_35747.csv").write_text(
        "VolumeAcc_DEID,NoteAcc_DEID,MRN_DEID,PatientSex,PatientAge,Manufacturer,transform\n"
        'val1.npz,val1,mrn7,F,036Y,ATTR_VALUE_NOT_FOUND,"[[1\n2]]"\n'
        "val2.npz,val2,mrn7,,,,\n"
        "val2.npz,val2,mrn8,,,,\n"
    )
    first, second, third = read(tmp_path).cases
    assert first.patient == "mrn7" and first.strata == {"sex": "F", "age": "036Y"}
    assert "second, different row" in second.skip
    assert (third.patient, third.skip) == ("val3", "")
    (tmp_path / "CT_Scan_Metadata_Complete_35747.csv").write_text("NoteAcc_DEID\nval1\n")
    with pytest.raises(InputError, match="CT_Scan_Metadata_.*: no column MRN_DEID"):
        read(tmp_path)


def test_bad_rows_are_skipped(tmp_path):
    write_labels(tmp_path, "valid", {"a": [], "b": []})
    with next(tmp_path.glob("*.csv")).open("a") as file:
        file.write("short,0,1\n")
    skips = {case.volume_name: case.skip for case in read(tmp_path).cases}
    assert "line 4: too few cells" in skips.pop("short") and skips == {"a": "", "b": ""}


def test_missing_or_malformed_table_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="imgvalid_.*: no such table"):
        read(tmp_path)
    (tmp_path / "imgvalid_Abnormality_and_Location_Labels.csv").write_text("id,nodule*heart\n")
    with pytest.raises(InputError, match="imgvalid_.*: no column NoteAcc_DEID"):
        read(tmp_path)


def test_axes_are_reoriented(tmp_path):
    lps = np.kron(chest_hu(), np.ones((8, 8, 8), np.int16))  # as large as a chest
    write_labels(tmp_path, "test", {"tst00001": []})
    np.savez_compressed(tmp_path / "tst00001.npz", ct=lps.transpose(2, 1, 0)[::-1])
    (case,) = read(tmp_path, "test", axes=config().axes).cases
    found = resolve_hu_and_geometry(read_scan(case.path()), spacing=case.spacing, axes=case.axes)
    np.testing.assert_array_equal(found.voxels, lps)
    assert (found.spacing_xyz, found.axes, found.values) == ((0.8,) * 3, "table", "stored")


def test_config_has_the_labels_of_the_protocol():
    labels, merged = config().labels, config().merged_labels.to_dict()
    names = {name for label in labels for name in merged.get(label, (label,))}
    assert len(labels) == 16 and merged.keys() <= set(labels)
    assert names == {*LABELS} - {"Mosaic attenuation pattern"}


@pytest.mark.parametrize(
    "variant", ["", "nodule_gr1cm", "scarring", "nodule_gr1cm,scarring,eleven_devices"]
)
def test_config_names_abnormalities_of_the_tables(tmp_path, variant):
    labels = config(variant).labels
    write_labels(tmp_path, "valid", {name: [f"{name}*heart"] for name in ABNORMALITIES})
    collection = read(tmp_path, labels=labels)
    assert len(collection.labels) == 16
    of_scan = {case.volume_name: case.labels for case in collection.cases}
    assert sum(of_scan["suture"]) == ("eleven_devices" in variant)
    assert of_scan["hernia"][collection.labels.index("Hiatal hernia")] == 1


@pytest.mark.parametrize(
    ("variant", "label", "count"),
    [
        ("nodule_gr1cm", "Lung nodule", (1, 2)),
        ("scarring", "Pulmonary fibrotic sequela", (1, 1)),
        ("eleven_devices", "Medical material", (8, 11)),
    ],
)
def test_variant_changes_its_label_only(variant, label, count):
    plain, chosen = config().labels.to_dict(), config(variant).labels.to_dict()
    assert (len(plain.pop(label)), len(chosen[label])) == count
    assert chosen.pop(label) != config().labels[label] and plain == chosen


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="'fibrosis' is none of the choices, nodule_gr1cm, scar"):
        config("scarring,fibrosis")
