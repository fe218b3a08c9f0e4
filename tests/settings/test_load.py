"""Settings out of files, variables and flags; and whatever is wrong with them, where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_dht import ConfigError, DhtConfig, Limits, Mode, NodeConfig
from prime_dht.settings import DEFAULT, Given, Setting, all_settings, load_settings

PEER_ID = "12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"
PEER = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER_ID}"

EVERYTHING = f"""\
listen = ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"]
peers = ["{PEER}"]
announce = ["/ip4/192.0.2.9/tcp/4001"]
mdns = true
data_dir = "data"
synchronous = "NORMAL"
redis_url = "redis://localhost:6379"
fast_transport = false
max_connections = 50

[dht]
alpha = 4
refresh_interval = "30m"
ttl = "12h"
read_quorum = 1
mode = "server"
network_id = "lab"
allow_publishers = ["{PEER_ID}"]
limits.max_ttl_s = 86_400
limits.max_store_bytes = "1.5GiB"
"""


def write(directory: Path, text: str | bytes) -> Path:
    file = directory / "node.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def complaint(file: Path) -> str:
    """What is wrong with a file, without the name of its directory."""
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    return str(caught.value).removeprefix(f"{file.parent}/")


def test_a_file_says_what_the_fields_then_are(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, EVERYTHING)).config == NodeConfig(
        listen=("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"),
        peers=(PEER,),
        announce=("/ip4/192.0.2.9/tcp/4001",),
        mdns=True,
        data_dir=tmp_path / "data",
        synchronous="NORMAL",
        redis_url="redis://localhost:6379",
        fast_transport=False,
        max_connections=50,
        dht=DhtConfig(
            alpha=4,
            refresh_interval=1800.0,
            ttl=43_200.0,
            read_quorum=1,
            mode=Mode.SERVER,
            network_id="lab",
            allow_publishers=frozenset({PEER_ID}),
            limits=Limits(max_ttl_s=86_400.0, max_store_bytes=3 << 29),
        ),
    )


def test_without_a_file_variables_and_flags_everything_is_the_default() -> None:
    settings = load_settings()
    assert settings.config == NodeConfig()
    assert set(settings.origins.values()) == {DEFAULT}
    assert settings.origins.keys() == all_settings().keys()
    for setting in all_settings().values():
        assert setting.of(NodeConfig()) == setting.default


def test_flags_stand_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[dht]\nalpha = 4\nttl = 60\nk_bucket_size = 10\n")
    settings = load_settings(
        file,
        environment={"PRIME_DHT_DHT_ALPHA": "5", "PRIME_DHT_DHT_TTL": "2h"},
        flags={("dht", "alpha"): Given(6, "--alpha")},
    )
    assert (settings.config.dht.alpha, settings.config.dht.ttl, settings.config.dht.k_bucket_size) == (6, 7200.0, 10)
    assert settings.origins["dht", "alpha"] == "--alpha"
    assert settings.origins["dht", "ttl"] == "PRIME_DHT_DHT_TTL"
    assert settings.origins["dht", "k_bucket_size"] == f"{file}:4"
    assert settings.origins["dht", "replication_factor"] == DEFAULT


def test_a_relative_path_counts_from_the_directory_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for text, expected in (("d", tmp_path / "d"), ("/d", Path("/d")), ("~/d", Path("/home/somebody/d"))):
        assert load_settings(write(tmp_path, f"data_dir = '{text}'")).config.data_dir == expected
    assert load_settings(environment={"PRIME_DHT_DATA_DIR": "d"}).config.data_dir == Path("d")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "\n[dht]\nreplicaton_factor = 3",
            'node.toml:3: unknown key "replicaton_factor" in [dht]; did you mean "replication_factor"?',
        ),
        ("[dht.limit]", 'node.toml:1: unknown key "limit" in [dht]; did you mean "limits"?'),
        ("[DHT]", 'node.toml:1: unknown key "DHT"; did you mean "dht"?'),
        ("xyzzy = 1", 'node.toml:1: unknown key "xyzzy"'),
        ("[[xyzzy]]\na = 1", 'node.toml:1: unknown key "xyzzy"'),
        ("'dht.alpha' = 1", 'node.toml:1: unknown key "dht.alpha"'),
        ("alpha = 3", 'node.toml:1: unknown key "alpha"; it belongs in [dht]'),
        ("[limits]", 'node.toml:1: unknown key "limits"; it belongs in [dht]'),
        ("[dht.limits]\nmdns = true", 'node.toml:2: unknown key "mdns" in [dht.limits]; it belongs in no table'),
        ("mdns = 1\ndht = 3", "node.toml:1: mdns: 1 is not true or false"),
        ("dht = 3", "node.toml:1: dht is a table: write [dht], and its keys below"),
        ("listen = '/ip4/127.0.0.1/tcp/1'", "node.toml:1: listen: '/ip4/127.0.0.1/tcp/1' is not a list of texts"),
        ("listen = [\n1]", "node.toml:1: listen: [1] is not a list of texts"),
        ("listen = ['foo']", "node.toml:1: listen: foo is not a multiaddr: unknown protocol: foo"),
        ("data_dir = 1", "node.toml:1: data_dir: 1 is not a text"),
        ("synchronous = 'OFF'", "node.toml:1: synchronous: 'OFF' is not FULL or NORMAL"),
        ("max_connections = 1.5", "node.toml:1: max_connections: 1.5 is not a whole number"),
        ("max_connections = true", "node.toml:1: max_connections: True is not a whole number"),
        ("max_connections = '64KiB'", "node.toml:1: max_connections: '64KiB' is not a whole number"),
        ("max_connections = 0", "node.toml:1: max_connections must be at least 1, not 0"),
        ("[dht]\nmode = 'servr'", "node.toml:2: mode: 'servr' is not server or client or auto"),
        ("[dht]\nttl = '1 fortnight'", "node.toml:2: ttl: '1 fortnight' is not a duration such as 90"),
        ("[dht]\nttl = nan", "node.toml:2: ttl must be a positive number, not nan"),
        ("[dht]\nttl = 1e999", "node.toml:2: ttl must be a positive number, not inf"),
        (f"[dht]\nttl = 1{'0' * 400}", "node.toml:2: ttl: a whole number has at most 64 bits"),
        (f"max_connections = {1 << 63}", "node.toml:1: max_connections: a whole number has at most 64 bits"),
        ("[dht]\nk_bucket_size = 1001", "node.toml:2: k_bucket_size must be at most 1000, not 1001"),
        ("data_dir = ''", "node.toml:1: data_dir: '' is not the path of anything"),
        ('data_dir = "a\\u0000b"', "node.toml:1: data_dir: 'a\\x00b' is not the path of anything"),
        ("[dht]\nttl = []", 'node.toml:2: ttl: [] is not a duration: seconds, or text such as "12h"'),
        ("[dht]\ncache_bytes = '64KB'", "node.toml:2: cache_bytes: '64KB' is not a size such as 65536, 64KiB or 16MiB"),
        ("[dht]\ncache_bytes = 1.0", 'node.toml:2: cache_bytes: 1.0 is not a size: bytes, or text such as "64KiB"'),
        ("[dht]\nallow_peers = ['me']", "node.toml:2: allow_peers: 'me' is not a peer id"),
        ("[dht]\nalpha = 30", "node.toml:2: alpha (30) cannot exceed k_bucket_size (20)"),
        ("[dht]\nk_bucket_size = 2", "node.toml:2: alpha (3) cannot exceed k_bucket_size (2)"),
        (
            "[dht]\n\nk_bucket_size = 7\nalpha = 30",
            "node.toml:3, node.toml:4: alpha (30) cannot exceed k_bucket_size (7)",
        ),
        ("dht.limits.max_ttl_s = 60", "node.toml:1: ttl (86400.0 s) exceeds max_ttl_s (60.0 s)"),
        ("[dht]\n[dht.limits]\nmax_subkey_bytes = 0", "node.toml:3: max_subkey_bytes must be a positive number, not 0"),
        ("a = 1\na =", "node.toml:2: Invalid value"),
        ("a = 1\na = 1\n\n", "node.toml:2: Cannot overwrite a value"),
        ("\n\na = '''", "node.toml:3: Expected \"'''\""),
        (b"a = 1\n\xff", "node.toml:2: not UTF-8"),
        (f"a = {'[' * 10_000}", "node.toml: nested too deeply"),
        (f"a = {'9' * 5000}", "node.toml: Exceeds the limit"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(text: str | bytes, says: str, tmp_path: Path) -> None:
    assert complaint(write(tmp_path, text)).replace(f"{tmp_path}/", "").startswith(says)


def whats_wrong(file: Path) -> str | None:
    """What is wrong with a file, if anything is."""
    try:
        load_settings(file)
    except ConfigError as error:
        return str(error)
    return None


FRAGMENTS = st.sampled_from(
    [*"\"'[]{}=.,#\n\\ \t", "dht", "limits", "alpha", "listen", "max_ttl_s", "1", "a", "\r\n", "é"]
)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=500)
@given(text=st.lists(FRAGMENTS, max_size=30).map("".join) | st.text(max_size=20))
def test_whatever_is_in_a_file_it_is_a_configuration_or_wrong(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write(tmp_path_factory.getbasetemp(), text.encode(errors="surrogatepass"))
    said = whats_wrong(file)
    assert said is None or said.startswith(f"{file}:")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "missing.toml") == "missing.toml: No such file or directory"
    (tmp_path / "directory").mkdir()
    assert complaint(tmp_path / "directory") == "directory: Is a directory"


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("PRIME_DHT_LISTEN", " /ip4/127.0.0.1/tcp/1  /ip4/127.0.0.1/tcp/2\n", ("listen",), 2),
        ("PRIME_DHT_PEER", PEER, ("peers",), (PEER,)),
        ("PRIME_DHT_PEERS", PEER, ("peers",), (PEER,)),
        ("PRIME_DHT_REDIS", "redis://x", ("redis_url",), "redis://x"),
        ("PRIME_DHT_REDIS_URL", "redis://x", ("redis_url",), "redis://x"),
        ("PRIME_DHT_MDNS", "True", ("mdns",), True),
        ("PRIME_DHT_MDNS", "1", ("mdns",), True),
        ("PRIME_DHT_FAST_TRANSPORT", "0", ("fast_transport",), False),
        ("PRIME_DHT_DHT_MODE", "client", ("dht", "mode"), Mode.CLIENT),
        ("PRIME_DHT_DHT_READ_QUORUM", "2", ("dht", "read_quorum"), 2),
        ("PRIME_DHT_DHT_CACHE_TTL_S", "0", ("dht", "cache_ttl_s"), 0.0),
        ("PRIME_DHT_DHT_LIMITS_MAX_STORE_BYTES", "2GiB", ("dht", "limits", "max_store_bytes"), 2 << 30),
        ("PRIME_DHT_DHT_ALLOW_PEERS", PEER_ID, ("dht", "allow_peers"), frozenset({PEER_ID})),
    ],
)
def test_a_variable_says_what_a_field_is(variable: str, text: str, path: tuple[str, ...], value: object) -> None:
    settings = load_settings(environment={variable: text, "HOME": "/"})
    found = all_settings()[path].of(settings.config)
    assert (len(found) if isinstance(found, tuple) and value == 2 else found) == value
    assert settings.origins[path] == variable


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PRIME_DHT_MDNS": "maybe"}, "PRIME_DHT_MDNS: mdns: 'maybe' is not true or false"),
        ({"PRIME_DHT_DHT_ALPHA": "three"}, "PRIME_DHT_DHT_ALPHA: alpha: 'three' is not a whole number"),
        ({"PRIME_DHT_DHT_TTL": "-5"}, "PRIME_DHT_DHT_TTL: ttl must be a positive number, not -5.0"),
        ({"PRIME_DHT_LISTEN": "foo"}, "PRIME_DHT_LISTEN: listen: foo is not a multiaddr"),
        (
            {"PRIME_DHT_DHT_ALPA": "3"},
            "PRIME_DHT_DHT_ALPA: there is no such setting; did you mean PRIME_DHT_DHT_ALPHA?",
        ),
        *(
            ({f"PRIME_DHT_{name}": "3"}, f"PRIME_DHT_{name}: there is no such setting; did you mean PRIME_DHT_{meant}?")
            for name, meant in (
                ("NETWORK", "DHT_NETWORK_ID"),
                ("NETWORK_ID", "DHT_NETWORK_ID"),
                ("CLIENT", "DHT_MODE"),
                ("TTL", "DHT_TTL"),
                ("MAX_TTL_S", "DHT_LIMITS_MAX_TTL_S"),
            )
        ),
        (
            {"PRIME_DHT_PEER": PEER, "PRIME_DHT_PEERS": PEER},
            "PRIME_DHT_PEER and PRIME_DHT_PEERS are the same setting: give one of them",
        ),
    ],
)
def test_what_is_wrong_in_a_variable_is_told_with_its_name(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environment=environment)
    assert str(caught.value).startswith(says)


def test_variables_that_are_empty_or_somebody_elses_are_left_alone() -> None:
    environment = {
        "PRIME_DHT_PEER": "",
        "PRIME_DHT_PORT": "tcp://10.0.0.1:4001",
        "PRIME_DHT_SERVICE_HOST": "10.0.0.1",
        "PRIME_DHT_TIMEOUT": "3",
        "DHT_ALPHA": "x",
    }
    assert load_settings(environment=environment) == load_settings()


def test_what_flags_and_files_make_wrong_together_names_both(tmp_path: Path) -> None:
    file = write(tmp_path, "dht.k_bucket_size = 5")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, flags={("dht", "alpha"): Given(9, "--alpha")})
    assert str(caught.value) == f"{file}:1, --alpha: alpha (9) cannot exceed k_bucket_size (5)"


def test_every_setting_has_a_key_and_a_variable_of_its_own_and_a_meaning() -> None:
    settings = all_settings().values()
    assert len({setting.key for setting in settings}) == len(settings)
    assert len({setting.variable for setting in settings}) == len(settings)
    for setting in settings:
        assert setting.meaning
        assert "`" not in setting.meaning


def test_what_is_no_whole_number_is_a_duration_in_seconds() -> None:
    in_seconds = {setting.key for setting in all_settings().values() if setting.is_duration}
    assert {key for key in in_seconds if not key.endswith("_s")} == {"ttl", "refresh_interval"}
    assert all(setting.is_duration for setting in all_settings().values() if setting.key.endswith("_s"))


def test_settings_know_where_they_stand_in_a_configuration() -> None:
    limit = all_settings()["dht", "limits", "max_key_bytes"]
    assert isinstance(limit, Setting)
    assert limit.of(replace(NodeConfig(), dht=DhtConfig(limits=Limits(max_key_bytes=7)))) == 7
