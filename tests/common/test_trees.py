"""Names and rules over nested dicts."""

from ctclip_jax.common.trees import flatten, match_rules, unflatten


def test_unflatten_inverts_flatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


def test_the_first_matching_rule_counts():
    rules = (("^text/embed", 0.0), ("^text", 0.1))
    names = ("text/embed/word", "text/blocks/up", "image/norm")
    assert list(match_rules(rules, names, default=1.0).values()) == [0.0, 0.1, 1.0]
