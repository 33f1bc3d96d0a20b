"""``passthrough.redis_url``: where Redis is; no password in a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.config_harness import BASE as SERVER
from tests.config.config_harness import Loader, Refusal, somewhere
from twisted_vllm.config.describe import describe
from twisted_vllm.config.problems import Rejected
from twisted_vllm.config.redis_places import RedisCluster, RedisPlace, RedisSentinels, redis_url
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer

BASE = SERVER | {"LITELLM_MASTER_KEY": "sk-1"}


def parse(text: object) -> RedisPlace:
    return redis_url(text, somewhere())


@pytest.mark.parametrize(
    ("written", "server", "name"),
    [
        ("redis://cache", RedisServer("cache"), "redis://cache:6379/0"),
        ("redis://cache/", RedisServer("cache"), "redis://cache:6379/0"),
        ("redis://10.0.0.1:7000/3", RedisServer("10.0.0.1", 7000, 3), "redis://10.0.0.1:7000/3"),
        ("rediss://[fd00::1]", RedisServer("fd00::1", tls=True), "rediss://[fd00::1]:6379/0"),
        ("redis://:hush@cache", RedisServer("cache", password=Secret("hush")), "redis://cache:6379/0"),
        (
            "redis://gate:h%3Au%2Fs%40h@cache:1/2",
            RedisServer("cache", 1, 2, username="gate", password=Secret("h:u/s@h")),
            "redis://cache:1/2",
        ),
    ],
)
def test_a_url_says_where_redis_is_and_a_name_tells_no_password(written: str, server: RedisServer, name: str) -> None:
    assert parse(written) == server
    assert parse(written).name == name
    assert "hush" not in repr(parse(written))


def test_sentinels_have_a_login_of_their_own() -> None:
    place = parse(
        "rediss+sentinel://gate:hu%2Fsh@s1,[fd00::2]:7/limits/3?sentinel_username=look&sentinel_password=p%26w"
    )
    assert place == RedisSentinels(
        (
            RedisServer("s1", 26379, tls=True, username="look", password=Secret("p&w")),
            RedisServer("fd00::2", 7, tls=True, username="look", password=Secret("p&w")),
        ),
        "limits",
        RedisServer("s1", 6379, 3, tls=True, username="gate", password=Secret("hu/sh")),
    )
    assert place.name == "rediss+sentinel://s1:26379,[fd00::2]:7/limits/3"
    assert [each.reveal() for each in place.passwords] == ["hu/sh", "p&w"]
    assert parse("redis+sentinel://:hush@s1/limits") == RedisSentinels(
        (RedisServer("s1", 26379),), "limits", RedisServer("s1", password=Secret("hush"))
    ), "what the master wants is not told to the Sentinels"


def test_a_cluster_is_found_by_some_of_its_nodes() -> None:
    place = parse("redis+cluster://:hush@n1,n2:7000/0")
    assert place == RedisCluster(
        (RedisServer("n1", password=Secret("hush")), RedisServer("n2", 7000, password=Secret("hush")))
    )
    assert place.name == "redis+cluster://n1:6379,n2:7000"
    assert "hush" not in repr(place)


def test_valkey_s_spelling_means_the_same() -> None:
    assert parse("valkeys://:hush@cache") == parse("rediss://:hush@cache")
    assert parse("valkey+sentinel://a/x") == parse("redis+sentinel://a/x")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("cache:6379", "must be a URL"),
        (6379, "must be text"),
        ("unix:///run/hush.sock", "unix is not supported"),
        ("redis+proxy://hush:26379/x", r"redis\+proxy is not supported"),
        ("redis://a:hush@h:port/1", "not a valid URL"),
        ("redis://:hush@", "names no host"),
        ("redis://u:hush@a,b", "names no host"),
        ("redis://u:hush@h/name", "database's number"),
        ("redis://u:hush@h/0?ssl=true", "has parameters"),
        ("redis://u:hu#sh@h/0", "names a user|not a valid URL|parameters"),
        ("redis://hush@h", "names a user without a password"),
        ("redis+sentinel://:hush@a,b", "names no service"),
        ("redis+sentinel://:hush@a,b/no service", "names no service"),
        ("redis+sentinel://:hush@a,b/gate/x", "database's number"),
        ("redis+sentinel://:hush@a,a:26379/gate", "a host and port twice"),
        ("redis+sentinel://:hush@a,,b/gate", "names no host"),
        ("redis+sentinel://:hush@a:0/gate", "names no host|not a valid URL"),
        ("redis+sentinel://:hush@a/gate?password=hush", "parameters that are not"),
        ("redis+sentinel://:hush@a/gate?sentinel_password=hush&sentinel_password=hush", "not once"),
        ("redis+sentinel://:hush@a/gate?sentinel_username=hush", "without sentinel_password"),
        ("redis+sentinel://:hush@a/gate?hush", "parameters that are not"),
        (f"redis+sentinel://:hush@{','.join(f's{n}' for n in range(33))}/gate", "more than 32"),
        ("redis+cluster://:hush@a,b/1", "only the first"),
        ("redis+cluster://:hush@a,b?x=hush", "has parameters"),
    ],
)
def test_what_is_no_such_url_is_refused_without_repeating_it(written: object, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as refusal:
        parse(written)
    assert "hush" not in str(refusal.value).replace("PASSWORD", "")


_STARTS = ("", "redis://", "rediss://u:", "redis+sentinel://", "redis+sentinel://a/b?", "redis+cluster://a,")


@given(st.builds(str.__add__, st.sampled_from(_STARTS), st.text()))
def test_any_text_is_such_a_url_or_refused(text: str) -> None:
    try:
        assert parse(text).name
    except Rejected as refusal:
        assert refusal.message


def test_without_a_url_nothing_is_asked_of_redis(load_text: Loader) -> None:
    settings = load_text("", BASE | {"REDIS_URL": "redis://other"})
    assert settings.redis is None
    assert settings.limits_on_redis_loss == "local"
    assert settings.timeouts.redis == 0.25


def test_the_url_comes_from_the_file_or_from_the_gateway_s_own_variable(load_text: Loader) -> None:
    environ = BASE | {"VLLM_PASSTHROUGH_REDIS_URL": "redis://own", "CACHE": "redis://:hush@named/1"}
    assert load_text("", environ).redis == RedisServer("own")
    text = "passthrough: {redis_url: os.environ/CACHE, limits_on_redis_loss: refuse, timeouts: {redis: 1.5}}"
    settings = load_text(text, environ)
    assert settings.redis == RedisServer("named", database=1, password=Secret("hush"))
    assert settings.limits_on_redis_loss == "refuse"
    assert settings.timeouts.redis == 1.5
    assert load_text("passthrough: {redis_url: ''}", BASE).redis is None


def test_the_check_says_where_limits_are_counted(load_text: Loader) -> None:
    settings = load_text("passthrough: {redis_url: 'redis://:hush@cache'}", BASE)
    assert "limits:         counted in redis://cache:6379/0; while it is away, each process counts for itself" in (
        describe(settings)
    )
    assert "hush" not in "\n".join(describe(settings))


def test_the_log_strikes_out_the_password_however_it_is_spelt(load_text: Loader) -> None:
    settings = load_text("passthrough: {redis_url: 'redis://:h%2Fu%40sh@cache'}", BASE)
    assert {"h/u@sh", "h%2Fu%40sh"} <= set(settings.secrets)
    settings = load_text("passthrough: {redis_url: 'redis+sentinel://a/b?sentinel_password=h%2Fu'}", BASE)
    assert {"h/u", "h%2Fu"} <= set(settings.secrets)


def test_a_misspelt_policy_is_refused_with_the_nearest_name(problems_of: Refusal) -> None:
    [problem] = problems_of("passthrough: {limits_on_redis_loss: refused}", {"LITELLM_MASTER_KEY": "sk-1"})
    assert "passthrough.limits_on_redis_loss must be one of local, refuse" in problem.replace(":", "")
