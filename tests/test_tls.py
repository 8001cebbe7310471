"""TLS of the policy server. The certificate in tests/tls signs itself, for localhost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from gymnasium import spaces

from agentgpt_remote import errors
from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.server import serve_policy
from agentgpt_remote.serving import TLS, BackgroundServer

FOLDER = Path(__file__).parent / "tls"
CERTIFICATE = TLS(cert=str(FOLDER / "cert.pem"), key=str(FOLDER / "key.pem"))


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE.cert)


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(num_layers=1, d_model=16, num_heads=1, max_input_states=2)
    path = tmp_path_factory.mktemp("bundle")
    save_bundle(path, PolicyModel(spaces.Box(-5, 5, (4,)), spaces.Discrete(2), config), provenance={})
    return path


@pytest.fixture
def policy_server(small_bundle: Path) -> Iterator[BackgroundServer]:
    with serve_policy(small_bundle, port=0, token="secret", tls=CERTIFICATE, block=False) as server:
        yield server


@pytest.mark.usefixtures("trusted")
def test_policy_acts_over_tls(policy_server: BackgroundServer, small_bundle: Path) -> None:
    assert policy_server.url.startswith("wss://")
    stream = np.random.default_rng(0).normal(size=(5, 3000, 4)).astype(np.float32)
    ids = [str(index) for index in range(3000)]
    with GPTPolicy(small_bundle) as local:
        expected = [local.select_action(ids, batch) for batch in stream]
    for url in (policy_server.url, policy_server.url.replace("wss://", "https://")):
        with GPTPolicy(url, token="secret") as policy:
            for batch, actions in zip(stream, expected, strict=True):
                np.testing.assert_array_equal(policy.select_action(ids, batch), actions)
        with pytest.raises(errors.AuthError, match="token"):
            GPTPolicy(url, token="wrong")
    ping = httpx.get(policy_server.url.replace("wss://", "https://") + "/ping", verify=httpx.create_ssl_context())
    assert ping.status_code == 200


def test_certificate_that_is_not_trusted_is_named(policy_server: BackgroundServer) -> None:
    with pytest.raises(errors.AuthError, match=r"certificate of wss://.* is not trusted.*SSL_CERT_FILE"):
        GPTPolicy(policy_server.url, token="secret")


@pytest.mark.usefixtures("trusted")
def test_server_that_speaks_no_tls_is_named(small_bundle: Path) -> None:
    with (
        serve_policy(small_bundle, port=0, block=False) as server,
        pytest.raises((errors.ProtocolMismatch, errors.HostUnreachable), match="wss://"),
    ):
        GPTPolicy(server.url.replace("ws://", "wss://"), timeout_s=5)


def test_client_without_tls_is_told_so_in_time(policy_server: BackgroundServer) -> None:
    with pytest.raises(errors.HostUnreachable):
        GPTPolicy(policy_server.url.replace("wss://", "ws://"), token="secret", timeout_s=5)


@pytest.mark.parametrize(("cert", "key"), [("cert.pem", "missing.pem"), ("key.pem", "key.pem")])
def test_wrong_certificate_is_named_before_listening(small_bundle: Path, cert: str, key: str) -> None:
    with pytest.raises(errors.ConfigError, match="can't use the certificate"):
        serve_policy(small_bundle, port=0, tls=TLS(cert=str(FOLDER / cert), key=str(FOLDER / key)), block=False)


def test_half_of_a_certificate_is_refused() -> None:
    assert TLS.of(None, None) is None
    with pytest.raises(errors.ConfigError, match="both files"):
        TLS.of("cert.pem", None)
