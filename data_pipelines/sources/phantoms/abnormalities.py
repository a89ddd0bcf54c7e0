"""The 18 abnormalities of CT-RATE: how each is drawn and how often it occurs."""

from collections.abc import Callable

import numpy as np

from data_pipelines.sources.phantoms import chest_signs, lung_signs
from data_pipelines.sources.phantoms.chest import Chest
from data_pipelines.sources.phantoms.findings import Finding

Sign = Callable[[Chest, np.random.Generator], tuple[Chest, Finding]]

# In drawing order: the heart first, then what lies over it, dense lung over dark lung, metal last.
SIGNS: dict[str, Sign] = {
    "Cardiomegaly": chest_signs.cardiomegaly,
    "Pericardial effusion": chest_signs.pericardial_effusion,
    "Coronary artery wall calcification": chest_signs.coronary_calcification,
    "Hiatal hernia": chest_signs.hiatal_hernia,
    "Lymphadenopathy": chest_signs.lymphadenopathy,
    "Arterial wall calcification": chest_signs.arterial_wall_calcification,
    "Mosaic attenuation pattern": lung_signs.mosaic_attenuation,
    "Emphysema": lung_signs.emphysema,
    "Lung opacity": lung_signs.lung_opacity,
    "Interlobular septal thickening": lung_signs.septal_thickening,
    "Pulmonary fibrotic sequela": lung_signs.fibrotic_sequela,
    "Peribronchial thickening": lung_signs.peribronchial_thickening,
    "Bronchiectasis": lung_signs.bronchiectasis,
    "Lung nodule": lung_signs.lung_nodule,
    "Atelectasis": lung_signs.atelectasis,
    "Consolidation": lung_signs.consolidation,
    "Pleural effusion": chest_signs.pleural_effusion,
    "Medical material": chest_signs.medical_material,
}

PREVALENCE: dict[str, float] = {
    "Medical material": 0.2,
    "Arterial wall calcification": 0.32,
    "Cardiomegaly": 0.22,
    "Pericardial effusion": 0.18,
    "Coronary artery wall calcification": 0.3,
    "Hiatal hernia": 0.2,
    "Lymphadenopathy": 0.28,
    "Emphysema": 0.25,
    "Atelectasis": 0.28,
    "Lung nodule": 0.38,
    "Lung opacity": 0.35,
    "Pulmonary fibrotic sequela": 0.28,
    "Pleural effusion": 0.22,
    "Mosaic attenuation pattern": 0.17,
    "Peribronchial thickening": 0.2,
    "Consolidation": 0.22,
    "Bronchiectasis": 0.2,
    "Interlobular septal thickening": 0.18,
}


def choose_abnormalities(rng: np.random.Generator) -> tuple[str, ...]:
    """The labels of one scan, each drawn on its own by PREVALENCE."""
    return tuple(label for label in SIGNS if rng.random() < PREVALENCE[label])


def add_abnormalities(
    chest: Chest, labels: tuple[str, ...], rng: np.random.Generator
) -> tuple[Chest, dict[str, Finding]]:
    """Draws each label's sign; returns the chest and what was drawn."""
    findings = {}
    for label in SIGNS:
        if label in labels:
            chest, findings[label] = SIGNS[label](chest, rng)
    return chest, findings
