from mtf_config.origin import CODE, DEFAULT, Origin, Origins, dotted, origin_of


def test_str_of_a_place() -> None:
    """A place in a file reads like a compiler's; what has no line is its source alone."""
    assert str(Origin("a.yaml", 3, 7)) == "a.yaml:3:7"
    assert str(Origin("a.yaml")) == "a.yaml"
    assert (str(CODE), str(DEFAULT)) == ("code", "default")


def test_via_is_shown_after_the_place() -> None:
    """A value that a placeholder produced names the placeholder."""
    assert str(Origin("a.yaml", 1, 2, "${env:X}")) == "a.yaml:1:2 (from ${env:X})"


def test_dotted() -> None:
    """Keys and list indices are joined the way users write them."""
    assert dotted(("a", 0, "b")) == "a.0.b"
    assert dotted(()) == ""


def test_origin_of_falls_back_to_what_holds_it() -> None:
    """The nearest level above answers for a key without a place of its own."""
    origins: Origins = {(): Origin("f", 1, 1), ("a",): Origin("f", 2, 2)}
    assert origin_of(origins, ("a", "b", 0)) == Origin("f", 2, 2)
    assert origin_of(origins, ("z",)) == Origin("f", 1, 1)
    assert origin_of({}, ("z",)) is None
