from pathlib import Path

import pytest
from pydantic import ValidationError

from eviction.policies import POLICIES
from runtime.budget import Budget
from runtime.config import PREFIX, Settings
from runtime.sources import SettingsRefused, load, unknown_variables


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "hotset.toml"
        path.write_text(text)
        return path

    return write


def test_every_default_is_a_setting_that_can_be_written():
    defaults = load(environ={})
    for name, text in defaults.shown().items():
        assert load({name: text}, environ={}) == defaults, name


def test_a_flag_beats_the_environment_which_beats_the_file(toml):
    path = toml('budget = "10%"\npolicy = "lru"\ngrace = 5\n')
    environ = {"HOTSET_POLICY": "gdsf", "HOTSET_GRACE": "6"}
    settings = load({"grace": "7"}, path, environ)
    assert settings.budget == Budget(percent=10)
    assert settings.policy == "gdsf"
    assert settings.grace == 7.0


def test_the_environment_may_name_the_file(toml):
    path = toml("grpc_port = 9000\n")
    assert load(environ={"HOTSET_CONFIG": str(path)}).grpc_port == 9000


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ("64MiB", "max_message", 64 << 20),
        ("1048576", "max_message", 1 << 20),
        ("1.5GB", "max_message", 1_500_000_000),
        ("512Mi", "reserve", 512 << 20),
        ("0", "grpc_port", 0),
        ("auto", "reserve", None),
        ("off", "batching", False),
        ("cuda:3", "device", "cuda:3"),
        ("4GiB", "budget", Budget(nbytes=4 << 30)),
        ("62.5%", "budget", Budget(percent=62.5)),
    ],
)
def test_sizes_and_choices_are_read_as_people_write_them(written, name, value):
    settings = load(environ={PREFIX + name.upper(): written})
    assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ("name", "written", "says"),
    [
        ("budget", "64x", "write a share of the device like '80%'"),
        ("budget", "0.8", "less than one byte"),
        ("budget", "120%", "between 0 and 100"),
        ("budget", "80", "is 80 bytes: did you mean '80%'?"),
        ("reserve", "5%", "write bytes"),
        ("max_message", "100", "greater than or equal to 4096"),
        ("max_message", "3GiB", "less than or equal"),
        ("grpc_port", "70000", "less than or equal to 65535"),
        ("grpc_port", "http", "valid integer"),
        ("policy", "mru", "choose one of lru, "),
        ("device", "gpu0", "write auto, cpu, cuda or cuda:N"),
        ("patience", "nan", "finite"),
        ("patience", "-1", "greater than or equal to 0"),
        ("gauge_interval", "0", "greater than 0"),
        ("log_format", "xml", "'json'"),
        ("batching", "perhaps", "valid boolean"),
        ("server_name", "", "at least 1 character"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_where_it_was_written(
    name, written, says, toml
):
    with pytest.raises(SettingsRefused) as as_flag:
        load({name: written}, environ={})
    assert str(as_flag.value).startswith(f"--{name.replace('_', '-')}: ")
    assert says in str(as_flag.value)
    with pytest.raises(SettingsRefused, match=f"^{PREFIX}{name.upper()}: "):
        load(environ={PREFIX + name.upper(): written})
    path = toml(f'{name} = "{written}"\n')
    with pytest.raises(SettingsRefused, match=rf"^{name} in .*hotset\.toml: "):
        load(config=path, environ={})


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(SettingsRefused) as refused:
        load({"grace": "x"}, environ={"HOTSET_LANES": "-1", "HOTSET_POLICY": "?"})
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "HOTSET_POLICY",
        "HOTSET_LANES",
        "--grace",
    ]


def test_a_key_of_the_file_that_is_not_known_is_refused_with_a_guess(toml):
    with pytest.raises(SettingsRefused, match=r"did you mean patience\?"):
        load(config=toml("pateince = 3\n"), environ={})
    with pytest.raises(SettingsRefused, match=r"server in .* is not a setting"):
        load(config=toml("[server]\nport = 3\n"), environ={})


def test_a_file_that_is_not_there_or_not_toml_is_named(toml, tmp_path):
    with pytest.raises(SettingsRefused, match=r"nowhere\.toml: No such file"):
        load(config=tmp_path / "nowhere.toml", environ={})
    with pytest.raises(SettingsRefused, match="is not TOML"):
        load(config=toml("budget = 80%\n"), environ={})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsRefused, match="is not TOML"):
        load(config=binary, environ={})


def test_what_kubernetes_writes_for_a_service_is_not_a_setting():
    # A Service named hotset, and one named hotset-grpc, in the same namespace.
    environ = {
        "HOTSET_PORT": "tcp://10.0.0.7:8081",
        "HOTSET_SERVICE_HOST": "10.0.0.7",
        "HOTSET_SERVICE_PORT_HTTP": "8080",
        "HOTSET_PORT_8081_TCP_ADDR": "10.0.0.7",
        "HOTSET_GRPC_PORT": "tcp://10.0.0.8:8081",
        "HOTSET_GRPC_SERVICE_HOST": "10.0.0.8",
    }
    assert load(environ=environ) == load(environ={})
    assert unknown_variables(environ) == []


def test_a_variable_that_means_nothing_is_named_with_a_guess():
    environ = {"HOTSET_BUGDET": "1", "HOTSET_LANES": "1", "PATH": "/bin"}
    [told] = unknown_variables(environ)
    assert told == "HOTSET_BUGDET (did you mean HOTSET_BUDGET?)"


def test_no_credential_is_shown_and_no_refusal_repeats_a_value():
    settings = Settings(store="s3://KEY:CANARY@host/b?X-Amz-Signature=CANARY")
    for text in (repr(settings), str(settings), str(settings.shown())):
        assert "CANARY" not in text
        assert "KEY" not in text
    assert "s3://***@host/b" in repr(settings)
    with pytest.raises(SettingsRefused) as refused:
        load({"host": ["CANARY"], "grace": "CANARY"}, environ={})
    assert "CANARY" not in str(refused.value)


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().grace = 1.0


def test_every_setting_tells_its_unit_and_its_default():
    for name, field in Settings.model_fields.items():
        text = field.description
        assert "Default: " in text or text.endswith("Required."), name
        if field.annotation is float:
            assert "in seconds" in text, name
        if field.annotation is not bool:
            assert field.title.isupper(), name


def test_the_readme_lists_the_policies_and_the_default() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith("| policies |")]
    for name in POLICIES:
        assert f"`{name}`" in row
    assert f"`{Settings().policy}` (default)" in row
