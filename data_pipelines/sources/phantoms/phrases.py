"""Sentences of reports that any abnormality, or none, may have.

Patterns are those of data_pipelines.sources.phantoms.vocabulary.
"""

PRESENT = (
    "{noun} {be} present.",
    "{noun} {be} present {where}.",
    "there {be} {noun}.",
    "there {be} {degree} {noun} {where}.",
    "{degree} {noun} {be} observed {where}.",
    "{noun} {be} observed.",
    "{noun} {be} seen {where}.",
    "{noun} {be} noted {where}, {degree}.",
    "{degree} {noun} {be} detected.",
)
CONCLUDED = (
    "{noun}.",
    "{degree} {noun} {where}.",
    "{noun} {where}.",
    "{noun} {be} present.",
    "findings consistent with {noun}.",
    "findings consistent with {degree} {noun} {where}.",
    "appearance compatible with {noun} {where}.",
    "{noun}, {degree}.",
)
ABSENT = (
    "there {be} no {noun}.",
    "no {noun} {be} seen.",
    "no evidence of {noun}.",
    "{noun} {be} not observed.",
    "{noun} {be} not present.",
    "{noun} {be} not detected.",
    "no {noun} {be} detected in this examination.",
    "no {noun} was found.",
    "no {noun}.",
)

NORMAL_ANATOMY = (
    "Trachea and both main bronchi are open.",
    "The thyroid gland is unremarkable.",
    "Esophageal wall thickness is normal.",
    "Upper abdominal organs included in the sections are normal.",
    "No lytic or destructive lesion is seen in the bones.",
    "Vertebral body heights are preserved.",
    "Calibration of the main mediastinal vessels is natural.",
    "The chest wall is unremarkable.",
    "Both adrenal glands have a normal shape.",
    "Air passage is preserved in the central airways.",
    "The spleen and the liver are of normal size.",
    "Bone structures in the study area are natural.",
)
NORMAL_IMPRESSIONS = (
    "Normal chest CT.",
    "Findings within normal limits.",
    "No pathology was detected in the chest.",
    "Unremarkable examination of the chest.",
    "Normal examination; no acute finding.",
)
REMAINDER = (
    "The examination is otherwise normal.",
    "Other findings within normal limits.",
    "The remaining structures are normal.",
)
CLINICAL = (
    "Cough", "Shortness of breath", "Chest pain", "Fever", "Follow-up", "Weight loss",
    "Preoperative evaluation", "Suspected pneumonia", "Dyspnea on exertion", "Back pain",
)  # fmt: skip
