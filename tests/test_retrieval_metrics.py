"""Retrieval metrics against the golden numbers, and the faults of the published ones."""

import numpy as np
import pytest

from ctclip_jax.metrics import retrieval

MOVED = "a golden metric moved: compare the rule with CT-CLIP's before touching the tolerance"


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "metrics.npz")


def test_recall_matches_the_published_script(golden):
    names = np.arange(130)
    found = retrieval.recall_at_k(
        golden["ret/text_latents"],
        golden["ret/image_latents"],
        query_names=names,
        gallery_names=names,
    )
    recalls = [found[f"recall@{k}"] for k in golden["ret/r2v_K"]]
    np.testing.assert_allclose(recalls, golden["ret/r2v_recall"], atol=1e-12, err_msg=MOVED)
    assert found["chance@5"] == pytest.approx(5 / 130)


def test_recall_pairs_by_name_and_not_by_order(golden):
    text, image = golden["ret/text_latents"], golden["ret/image_latents"]
    names = np.arange(130)
    straight = retrieval.recall_at_k(text, image, query_names=names, gallery_names=names)
    order = np.random.default_rng(0).permutation(130)
    mixed = retrieval.recall_at_k(text, image[order], query_names=names, gallery_names=names[order])
    assert mixed == straight


def test_any_item_of_the_name_is_a_hit():
    gallery = np.eye(4)
    names = np.array(["a", "a", "b", "c"])
    query = np.array([[0.1, 0.9, 0.5, 0.0]])
    found = retrieval.recall_at_k(
        query, gallery, query_names=names[:1], gallery_names=names, ks=(1, 2, 5)
    )
    assert found["recall@1"] == 1.0
    assert found["chance@1"] == pytest.approx(2 / 4)
    assert found["chance@2"] == pytest.approx(1 - (2 / 4) * (1 / 3))
    assert "recall@5" not in found


def test_equal_latents_earn_nothing():
    latents, names = np.ones((20, 3)), np.arange(20)
    found = retrieval.recall_at_k(latents, latents, query_names=names, gallery_names=names)
    assert found["recall@5"] == found["recall@10"] == 0.0


def test_a_query_without_its_item_is_an_error():
    with pytest.raises(ValueError, match="'b'"):
        retrieval.recall_at_k(
            np.ones((1, 2)),
            np.ones((1, 2)),
            query_names=np.array(["b"]),
            gallery_names=np.array(["a"]),
        )


def test_label_overlap_matches_the_corrected_script(golden):
    found = retrieval.label_overlap_at_k(
        golden["ret/image_latents"], golden["ret/labels"], scans=np.arange(130)
    )
    values = [found[f"label_overlap@{k}"] for k in golden["ret/v2v_K"]]
    expected = golden["corrected/v2v_per_K_self_excluded"]
    np.testing.assert_allclose(values, expected, atol=1e-12, err_msg=MOVED)


def test_published_label_overlap_matches_the_published_script(golden):
    found = retrieval.published_label_overlap(golden["ret/image_latents"], golden["ret/labels"])
    expected = golden["ret/v2v_reference_as_written"]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-12, err_msg=MOVED)


def test_other_reconstructions_of_the_scan_are_not_in_the_gallery():
    latents = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    scans = np.array(["a", "a", "b", "c"])
    found = retrieval.label_overlap_at_k(latents, labels, scans=scans, ks=(1, 2))
    assert found == {"label_overlap@1": 0.25, "chance": pytest.approx((0 + 0 + 1 / 3 + 1 / 3) / 4)}
