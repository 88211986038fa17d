"""A wrong URL or option is told before anything happens, and nats-py is only loaded where it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.errors import (
    ConfigError,
)


@pytest.mark.parametrize(
    "url",
    [
        "nats:",
        "nats://",
        "http://127.0.0.1",
        "nats://127.0.0.1:0",
        "nats://127.0.0.1:99999",
        "nats://127.0.0.1:port",
        "nats://:4222",
        "nats://a,,b",
        "nats://a?replica=3",
        "nats://a?replicas=0",
        "nats://a?replicas=many",
        "nats://a?storage=tape",
        "nats://a?timeout_s=0",
        "nats://a?heartbeat_s=60",
        "nats://a?ack_wait_s=0",
        "nats://a?ack_wait_s=nan",
        "nats://a?ack_wait_s=100000",
        "nats://a?max_age_s=-1",
        "nats://a?max_age_s=nan",
        "nats://a?tls_ca=/does/not/exist",
        "nats://a?creds=/does/not/exist",
        f"nats://a?tls_ca={__file__}",
        f"nats://a?creds={json.__file__}",
    ],
)
def test_a_wrong_url_or_option_is_a_clear_error(url: str) -> None:
    """At construction, before anything happens."""
    with pytest.raises(ConfigError):
        NatsConnector(url)


def test_keywords_go_before_the_url() -> None:
    """One option, two ways to say it."""
    connector = NatsConnector("nats://h?replicas=3&timeout_s=2.5", replicas=1)
    assert (connector.options.replicas, connector.options.timeout_s) == (1, 2.5)
    with pytest.raises(ConfigError, match="replica"):
        NatsConnector("nats://h", replica=1)


def test_an_ipv6_address_and_a_default_port() -> None:
    """Hosts as people write them."""
    NatsConnector("nats://[::1]")
    NatsConnector("nats://[::1]:4222,example.org")


def test_without_nats_py() -> None:
    """The connector's file is imported without it; a connector is not made, and the error is the command."""
    program = (
        "import sys; sys.modules['nats'] = None\n"
        "from synckit_connectors.nats_jetstream import NatsConnector\n"
        "from synckit_streams.errors import MissingDependency\n"
        "try: NatsConnector('nats://127.0.0.1')\n"
        "except MissingDependency as error: print(error.hint)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "pip install 'synckit-streams[nats]'"


def test_importing_the_connector_imports_no_client() -> None:
    """nats-py is only loaded by who makes a connector."""
    program = "import sys, synckit_connectors.nats_jetstream; print('nats' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "False"
