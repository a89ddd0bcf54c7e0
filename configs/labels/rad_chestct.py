"""How the 84 abnormalities of RAD-ChestCT become 16 labels of CT-RATE, for an external test.

    python -m data_pipelines.prepare --source=rad_chestct --data=RAD-ChestCT --splits=valid,test \
        --label_map=configs/labels/rad_chestct.py --out=SHARDS

The protocol (CT-CLIP, arXiv 2403.17834) leaves out Mosaic attenuation pattern and has one label
for both calcifications, `merged_labels`: the model's score for it is the greater of the two. The
mapping was never published. Others agree on most of it and differ in three labels; choose by names
after a colon, `configs/labels/rad_chestct.py:nodule_gr1cm,scarring,eleven_devices`:

    nodule_gr1cm     Lung nodule: nodule and nodulegr1cm, a nodule above 1 cm; else nodule alone
    scarring         Pulmonary fibrotic sequela: scarring; else fibrosis
    eleven_devices   Medical material: staples, sutures and breast implants too; else 8 devices

Say which you chose beside every result.
"""

from ml_collections import config_dict

DEVICES = (
    "catheter_or_port",
    "pacemaker_or_defib",
    "stent",
    "clip",
    "hardware",
    "gi_tube",
    "tracheal_tube",
    "chest_tube",
)
LABELS = {
    "Medical material": DEVICES,
    "Calcification": ("calcification",),
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule",),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}
CHOICES = {
    "nodule_gr1cm": {"Lung nodule": ("nodule", "nodulegr1cm")},
    "scarring": {"Pulmonary fibrotic sequela": ("scarring",)},
    "eleven_devices": {"Medical material": (*DEVICES, "staple", "suture", "breast_implant")},
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns labels -> abnormalities, the axes of the scans, and the merged labels; `variant`
    names some of CHOICES, comma separated."""
    labels = dict(LABELS)
    for name in filter(None, variant.split(",")):
        if name not in CHOICES:
            raise ValueError(
                f"configs/labels/rad_chestct.py:{variant}: {name!r} is none of the choices, "
                f"{', '.join(CHOICES)}"
            )
        labels |= CHOICES[name]
    return config_dict.create(
        labels=labels,
        axes="IPL",
        merged_labels={
            "Calcification": ("Arterial wall calcification", "Coronary artery wall calcification")
        },
    )
