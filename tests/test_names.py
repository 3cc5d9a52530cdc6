import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.names import valid_name, valid_version


@pytest.mark.parametrize(
    "name", ["a", "resnet-50", "digits_017", "A.b.C", "-x", "7", "x" * 253]
)
def test_a_plain_name_is_valid(name):
    assert valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "../a",
        "a\\b",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "$(id)",
        "%2e%2e",
        "x" * 254,
        "modèle",
        "\uff41",  # a full-width letter that isalnum() likes
        "\u0430",  # a Cyrillic one
        "\u0661",  # a digit to isdigit()
        "a\u2028b",
        "s3://bucket/a",
    ],
)
def test_a_name_that_means_more_than_itself_is_not(name):
    assert not valid_name(name)


@given(st.text())
def test_a_valid_name_is_one_visible_ascii_path_component(name):
    if valid_name(name):
        assert name.isascii()
        assert name.isprintable()
        assert not name.startswith(".")
        assert not set(name) & set("/\\%$ :?#@")


@pytest.mark.parametrize("version", ["0", "1", "20261121", "9" * 18])
def test_a_decimal_version_is_valid(version):
    assert valid_version(version)
    assert int(version) < 2**63


@pytest.mark.parametrize(
    "version",
    ["", "01", "-1", "+1", "1.0", "v1", " 1", "1\n", "9" * 19, "\u0661", "1e3"],
)
def test_any_other_version_is_not(version):
    assert not valid_version(version)
