"""What radiologists call the 18 abnormalities, present and absent.

A pattern may use {noun}, {be}, {where}, {degree}, {size} (mm), {kind} and {number}, and is used
only when the finding has what it names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Names of one abnormality, and sentences that state or deny it in other words.

    `nouns` are used with "is", `plurals` with "are"; the label's own name comes first.
    """

    nouns: tuple[str, ...]
    present: tuple[str, ...]
    absent: tuple[str, ...]
    plurals: tuple[str, ...] = ()


VOCABULARY: dict[str, Vocabulary] = {
    "Medical material": Vocabulary(
        nouns=("medical material", "medical device material", "implanted medical material"),
        present=(
            "{kind} visible {where}.",
            "metallic artifacts of {kind} are observed.",
            "{kind} in place.",
            "status after placement of {kind}.",
            "medical material ({kind}) is observed {where}.",
        ),
        absent=(
            "no catheter, pacemaker or surgical hardware is seen.",
            "no implanted device is observed.",
            "there are no metallic foreign bodies.",
            "no surgical material in the sections.",
        ),
    ),
    "Arterial wall calcification": Vocabulary(
        nouns=("arterial wall calcification", "aortic wall calcification",
               "vascular calcification"),
        plurals=("arterial wall calcifications", "calcific atheroma plaques",
                 "aortic calcifications"),
        present=(
            "calcified plaques line the {kind}.",
            "atherosclerotic wall calcification {where}, {degree}.",
            "there are {degree} calcific atheromatous changes {where}.",
            "aortic atherosclerosis.",
            "the wall of the {kind} is calcified.",
        ),
        absent=(
            "the wall of the aorta is smooth, without calcified plaque.",
            "no calcific atheroma plaque in the aorta.",
            "no aortic atherosclerosis is seen.",
            "thoracic aorta is free of calcification.",
        ),
    ),
    "Cardiomegaly": Vocabulary(
        nouns=("cardiomegaly", "enlargement of the heart", "cardiac enlargement"),
        present=(
            "heart size is increased.",
            "the heart is {degree}ly enlarged.",
            "the cardiothoracic ratio is increased.",
            "heart dimensions are above normal.",
            "the cardiac silhouette is wide.",
        ),
        absent=(
            "heart size is normal.",
            "heart contour and size are normal.",
            "the heart is not enlarged.",
            "the cardiothoracic ratio is within normal limits.",
            "cardiac dimensions are normal.",
        ),
    ),
    "Pericardial effusion": Vocabulary(
        nouns=("pericardial effusion", "pericardial fluid", "effusion in the pericardial space"),
        present=(
            "fluid measuring {size} mm surrounds the heart.",
            "pericardial effusion reaching {size} mm in thickness is observed.",
            "the pericardial space contains a {degree} amount of fluid.",
            "fluid collection between the pericardial layers.",
            "{size} mm pericardial effusion.",
        ),
        absent=(
            "no fluid around the heart.",
            "pericardial thickness is normal, without effusion.",
            "the pericardial space is free of fluid.",
            "pericardial effusion or thickening was not observed.",
        ),
    ),
    "Coronary artery wall calcification": Vocabulary(
        nouns=("coronary artery wall calcification", "coronary artery calcification",
               "coronary calcification"),
        plurals=("coronary artery wall calcifications",
                 "calcific plaques in the coronary arteries"),
        present=(
            "the {kind} is calcified.",
            "coronary arteries show {degree} calcified plaque.",
            "coronary atherosclerosis, {degree}.",
            "calcific changes of the coronary arteries.",
            "calcified atheroma {where} of the coronary tree.",
        ),
        absent=(
            "coronary arteries are free of calcification.",
            "no calcified plaque in the coronary arteries.",
            "no coronary atherosclerosis is seen.",
            "the coronary arteries are unremarkable.",
        ),
    ),
    "Hiatal hernia": Vocabulary(
        nouns=("hiatal hernia", "sliding hiatal hernia", "hernia at the esophageal hiatus"),
        present=(
            "part of the stomach lies behind the heart, containing {kind}.",
            "a {degree} hiatal hernia of {size} mm is seen.",
            "the stomach herniates through the esophageal hiatus.",
            "retrocardiac gastric herniation, {size} mm.",
            "intrathoracic stomach behind the heart.",
        ),
        absent=(
            "the stomach lies below the diaphragm.",
            "the esophageal hiatus is of normal width.",
            "no herniation of the stomach.",
            "no gastric herniation into the chest is seen.",
        ),
    ),
    "Lymphadenopathy": Vocabulary(
        nouns=("lymphadenopathy", "mediastinal lymphadenopathy", "lymph node enlargement"),
        plurals=("enlarged lymph nodes", "lymphadenopathies",
                 "pathologically enlarged lymph nodes"),
        present=(
            "enlarged lymph nodes up to {size} mm are seen {where}.",
            "lymph nodes with a short axis of {size} mm {where}.",
            "nodal conglomerates {where}, the largest {size} mm.",
            "lymph nodes of the chest are increased in size.",
            "{number} nodal stations are enlarged.",
        ),
        absent=(
            "mediastinal lymph nodes are not enlarged.",
            "no lymph node in pathological size and appearance was seen.",
            "lymph nodes are of normal size.",
            "no enlarged lymph nodes in prevascular, paratracheal or subcarinal stations.",
        ),
    ),
    "Emphysema": Vocabulary(
        nouns=("emphysema", "pulmonary emphysema"),
        plurals=("emphysematous changes", "emphysematous areas"),
        present=(
            "{kind} emphysema is seen {where}.",
            "{degree} {kind} emphysema.",
            "areas of low attenuation without walls {where}.",
            "air spaces are enlarged with destroyed lung tissue {where}.",
            "hyperlucent, destroyed parenchyma {where}.",
        ),
        absent=(
            "no emphysematous change in either lung.",
            "no bulla or air trapping from tissue destruction is seen.",
            "lung parenchyma shows no emphysematous destruction.",
            "no areas of tissue destruction in the lungs.",
        ),
    ),
    "Atelectasis": Vocabulary(
        nouns=("atelectasis", "atelectatic change", "volume loss with atelectasis"),
        plurals=("atelectatic changes", "atelectases"),
        present=(
            "{kind} atelectasis {where}.",
            "{degree} {kind} atelectasis is seen {where}.",
            "loss of volume {where}.",
            "collapsed lung tissue {where}.",
            "airless bands of lung {where}.",
        ),
        absent=(
            "both lungs are fully expanded.",
            "no loss of volume in the lungs.",
            "no collapse of lung tissue.",
            "no subsegmental or lobar collapse.",
        ),
    ),
    "Lung nodule": Vocabulary(
        nouns=("lung nodule", "pulmonary nodule", "nodule in the lung"),
        plurals=("lung nodules", "pulmonary nodules", "nodules in the lungs"),
        present=(
            "a {kind} nodule of {size} mm {where}.",
            "{kind} nodular lesion measuring {size} mm {where}.",
            "the largest nodule measures {size} mm, {where}.",
            "{number} nodular lesions up to {size} mm {where}.",
            "round lesion {where}, {size} mm.",
        ),
        absent=(
            "no mass or nodule in either lung.",
            "no nodular lesion was detected in the lung parenchyma.",
            "no suspicious focal lesion in the lungs.",
            "both lungs are free of nodules.",
        ),
    ),
    "Lung opacity": Vocabulary(
        nouns=("lung opacity", "ground-glass opacity", "opacity in the lungs"),
        plurals=("lung opacities", "ground-glass opacities", "ground-glass densities"),
        present=(
            "ground-glass density increase {where}.",
            "hazy increased attenuation {where}.",
            "{degree} ground-glass infiltration {where}.",
            "patchy areas of frosted glass density {where}.",
            "areas of hazy density, {degree}, {where}.",
        ),
        absent=(
            "no ground-glass density in the lungs.",
            "no infiltrative density in either lung.",
            "lung attenuation is clear of opacities.",
            "no hazy increase in density.",
        ),
    ),
    "Pulmonary fibrotic sequela": Vocabulary(
        nouns=("pulmonary fibrotic sequela", "fibrotic sequela", "sequela fibrosis"),
        plurals=("pulmonary fibrotic sequelae", "fibrotic sequela changes", "fibrotic densities"),
        present=(
            "{kind} pleuroparenchymal scarring {where}.",
            "fibrotic bands and strands {where}.",
            "sequela changes {where}, {degree}.",
            "chronic scarring {where}.",
            "pleuroparenchymal sequela density {where}.",
        ),
        absent=(
            "no scarring in the lungs.",
            "no pleuroparenchymal sequela is seen.",
            "no chronic fibrotic change.",
            "the apices and bases are free of scars.",
        ),
    ),
    "Pleural effusion": Vocabulary(
        nouns=("pleural effusion", "pleural fluid", "effusion in the pleural space"),
        present=(
            "{degree} pleural effusion {where}, {size} mm thick.",
            "fluid in the pleural space {where}.",
            "pleural fluid reaching {size} mm {where}.",
            "pleural fluid collects posteriorly {where}.",
            "dependent fluid in the hemithorax, {degree}, {where}.",
        ),
        absent=(
            "no fluid in the pleural spaces.",
            "pleural spaces are clear.",
            "costophrenic angles are free of fluid.",
            "pleural effusion or thickening was not detected.",
        ),
    ),
    "Mosaic attenuation pattern": Vocabulary(
        nouns=("mosaic attenuation pattern", "mosaic attenuation", "mosaic pattern"),
        present=(
            "lung density is patchy and heterogeneous {where}.",
            "geographic areas of differing attenuation {where}.",
            "a mosaic of darker and brighter lobules, {degree}.",
            "heterogeneous aeration of both lungs.",
            "mosaic perfusion, suggesting small airway disease.",
        ),
        absent=(
            "attenuation of the lungs is homogeneous.",
            "both lungs are evenly aerated.",
            "no geographic difference in lung density.",
            "no heterogeneous aeration.",
        ),
    ),
    "Peribronchial thickening": Vocabulary(
        nouns=("peribronchial thickening", "bronchial wall thickening", "peribronchial cuffing"),
        present=(
            "bronchial walls are thickened {where}.",
            "{degree} thickening of the bronchial walls {where}.",
            "cuffing around the central bronchi.",
            "increase in peribronchial wall thickness {where}.",
            "thick-walled central airways, {degree}.",
        ),
        absent=(
            "bronchial walls are of normal thickness.",
            "no thickening around the bronchi.",
            "walls of the airways are thin.",
            "no cuffing of the central bronchi.",
        ),
    ),
    "Consolidation": Vocabulary(
        nouns=("consolidation", "pulmonary consolidation", "airspace consolidation"),
        plurals=("consolidations", "consolidation areas"),
        present=(
            "consolidation with air bronchograms {where}.",
            "airless dense lung with open bronchi {where}, {size} mm.",
            "{degree} pneumonic infiltration {where}.",
            "dense airspace disease {where}.",
            "area of consolidated lung measuring {size} mm {where}.",
        ),
        absent=(
            "no airspace disease.",
            "no pneumonic infiltration in either lung.",
            "no consolidated lung.",
            "no area with air bronchograms is seen.",
        ),
    ),
    "Bronchiectasis": Vocabulary(
        nouns=("bronchiectasis", "bronchial dilatation"),
        plurals=("bronchiectatic changes", "dilated bronchi", "bronchiectases"),
        present=(
            "{kind} bronchiectasis {where}.",
            "{degree} {kind} bronchiectasis is observed {where}.",
            "the bronchi are dilated {where}.",
            "wide bronchi with thick walls {where}.",
            "tram-track bronchi {where}.",
        ),
        absent=(
            "bronchi are of normal caliber.",
            "no dilatation of the bronchi.",
            "airway caliber is normal in all lobes.",
            "no dilated airways.",
        ),
    ),
    "Interlobular septal thickening": Vocabulary(
        nouns=("interlobular septal thickening", "septal thickening",
               "thickening of the interlobular septa"),
        plurals=("thickened interlobular septa",),
        present=(
            "interlobular septa are thickened {where}.",
            "reticular septal lines {where}, {degree}.",
            "smooth thickening of the septa {where}.",
            "a net of septal lines {where}.",
            "{degree} increase in septal markings {where}.",
        ),
        absent=(
            "interlobular septa are thin.",
            "no septal lines are seen.",
            "septal markings are normal.",
            "no reticular pattern in the lungs.",
        ),
    ),
}  # fmt: skip
