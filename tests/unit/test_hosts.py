"""Which hosts are served."""

import pytest

from api.hosts import AllowedHosts


@pytest.mark.parametrize(
    "given",
    [
        "127.0.0.1",
        "127.0.0.1:8001",
        "192.168.1.7:8001",
        "[::1]:8001",
        "[2001:db8::1]",
        "localhost",
        "LOCALHOST:8001",
        "app.localhost:8001",
        "localhost.",
        "localhost.localdomain",
        "ip6-localhost:8001",
        "",
    ],
)
def test_addresses_and_the_machines_own_names_are_served(given: str) -> None:
    """A page can have none of them by turning its name elsewhere; probes and scrapes use addresses."""
    assert AllowedHosts([]).allows(given)


@pytest.mark.parametrize(
    "given",
    [
        "evil.example:8001",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "127.0.0.1@evil.example",
        "[::1].evil.example",
        "127.0.0.1:8001.evil.example",
        "evil.example:80:80",
        "forge.example.org.evil.example",
        "2130706433",
        "127.1",
    ],
)
def test_other_names_are_not(given: str) -> None:
    """Nor what is no host at all."""
    assert not AllowedHosts(["forge.example.org"]).allows(given)
    assert AllowedHosts().allows(given)
    assert AllowedHosts(["*"]).allows(given)


def test_names_that_are_given_are_served() -> None:
    """A name stands for itself, one with a star for those below it."""
    hosts = AllowedHosts(["Forge.example.org", "*.example.net"])
    for given in ("forge.example.org", "FORGE.example.org.:443", "a.example.net", "a.b.example.net:8001"):
        assert hosts.allows(given)
    for given in ("a.forge.example.org", "example.net", "example.org", "evilexample.net"):
        assert not hosts.allows(given)
