"""The settings, as a ``jsonqueue.toml`` or a caller gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.config import CONFIG_FILE, Config, config_from, parse_config
from jsonqueue.errors import InvalidConfig
from jsonqueue.retry import Linear
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.folder import load_config


def test_what_a_file_does_not_say_keeps_its_default() -> None:
    """One line is a whole settings file, and an empty file is all defaults."""
    assert parse_config("lease_ms = 4_000") == Config(lease_ms=4_000)
    assert parse_config("# nothing yet") == Config()
    assert parse_config("\ufefflease_ms = 4_000") == Config(lease_ms=4_000)  # saved on Windows


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lease_ms = ", "is not valid TOML"),
        ("lease = 4_000", "unknown setting 'lease'"),
        ("lease_ms = 'long'", "lease_ms is 'long', and must be a whole number from 100 to 2,000,000,000"),
        ("lease_ms = -1", "lease_ms is -1, and must be"),
        ("lease_ms = inf", "lease_ms is inf, and must be a whole number"),
        ("attempts_max = 0", "attempts_max is 0, and must be a whole number of 1 or more"),
        ("lease_ms = 9_000\narchive = true\ndepth_max = true", "depth_max is true, and must be a whole number from 1 to 200"),
        ("archive = 'yes'", "archive is 'yes', and must be true or false"),
        ("durability = 'none'", 'durability is \'none\', and must be "power-cut" or "process-crash"'),
        ("retry = 'never'", "retry is 'never', and must be a table with a kind \\(exponential, linear, never\\), such as"),
        ("retry = { kind = ['never'] }", "must be a table with a kind"),
        ("retry = { kind = 'never', step_ms = 1 }", "retry.step_ms is none of the members of never: these are none"),
        ("retry = { kind = 'linear', step = 1 }", "retry.step is none of the members of linear: these are step_ms, cap_ms"),
        ("retry = { kind = 'exponential', factor = 0 }", "retry.factor is 0, and must be a number from 1 to 100"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_name(text: str, why: str) -> None:
    """Running on with a default in the place of a mistyped setting would be found out too late."""
    with pytest.raises(InvalidConfig, match=why) as caught:
        parse_config(text)
    assert str(caught.value).startswith(CONFIG_FILE)


@pytest.mark.parametrize("name", ["lease_ms", "flush_interval_ms"])
def test_what_a_broker_waits_for_is_no_longer_than_it_can_wait(name: str) -> None:
    """Brokers died of a larger figure, one after the other, with the first task that was handed out."""
    with pytest.raises(InvalidConfig, match=f"{name} is 2147483648, and must be a whole number from"):
        config_from({name: 2**31})
    assert config_from({name: 2_000_000_000})


@pytest.mark.parametrize("config", [Config(attempts_max=0), Config(lease_ms="x"), Config(retry=Linear(step_ms=-1)), {"lease_ms": 5}])
def test_settings_that_a_program_makes_are_checked_by_the_manager(tmp_path: Path, config: Any) -> None:
    """Making a Config checks nothing; brokers that were told such a thing would fail one after the other."""
    with pytest.raises(InvalidConfig):
        BrokerManager(tmp_path / "queue", config)
    assert not (tmp_path / "queue").exists()


def test_an_unknown_setting_is_answered_with_those_that_there_are() -> None:
    """The hint is the list to look it up in."""
    with pytest.raises(InvalidConfig) as caught:
        config_from({"lease": 1}, source="here")
    assert all(name in caught.value.hint for name in Config.__struct_fields__)


def test_settings_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    """Not with a traceback from a decoder."""
    (tmp_path / CONFIG_FILE).write_bytes(b"lease_ms = 1 # \xff")
    files = RealFiles(tmp_path)
    with pytest.raises(InvalidConfig, match="is not UTF-8"):
        load_config(files)
    files.shut()
