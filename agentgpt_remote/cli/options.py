"""Options that several commands share."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    from agentgpt_remote.serving import TLS

Host = Annotated[str, typer.Option(help="Address to listen on; anything but loopback needs a token.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]
Token = Annotated[
    str | None, typer.Option(envvar="AGENTGPT_TOKEN", show_envvar=True, help="Secret that clients must present.")
]
TLSCert = Annotated[
    str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM) to serve wss:// with.")
]
TLSKey = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Private key of the certificate (PEM).")]
SelfSigned = Annotated[
    bool,
    typer.Option("--tls-self-signed", help="Serve wss:// with a certificate made here; prints its pin. Needs [tls]."),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", envvar="AGENTGPT_INSECURE", help="Allow plaintext beyond this machine."),
]
Pin = Annotated[
    str | None,
    typer.Option(
        "--pin", envvar="AGENTGPT_PIN", metavar="sha256:HEX", help="Trust this certificate of the server, and no other."
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option("--ca-file", envvar="AGENTGPT_CA_FILE", metavar="FILE", help="Trust these authorities (PEM)."),
]
TokenFile = Annotated[
    str | None, typer.Option("--token-file", metavar="FILE", help="File that holds the token, instead of --token.")
]
SecretFile = Annotated[
    str | None,
    typer.Option("--secret-file", metavar="FILE", help="File with the relay's secret; `agentgpt token` makes one."),
]
Secret = Annotated[
    str | None,
    typer.Option("--secret", envvar="AGENTGPT_RELAY_SECRET", show_envvar=True, help="The relay's secret."),
]
ClientToken = Annotated[
    str | None, typer.Option("--token", envvar="AGENTGPT_TOKEN", show_envvar=True, help="Token of the host.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line for scripts.")]


def is_url(text: str) -> bool:
    """Tell whether an argument is the URL of a server rather than a source or a folder."""
    return text.startswith(("ws://", "wss://", "http://", "https://"))


def server_tls(cert: str | None, key: str | None, self_signed: bool, host: str) -> TLS | None:
    """Return the certificate that the options name, made here where they ask for that.

    Raises:
        ConfigError: only one of the files is named, or both ways are.
        ModuleNotFoundError: the library that makes certificates is not installed.
    """
    from agentgpt_remote.certificates import certificate_of_environment
    from agentgpt_remote.serving import TLS

    given = TLS.of(cert, key)
    if given is None and (told := certificate_of_environment()) is not None:
        given = TLS(cert=str(told), key=str(told))
    if not self_signed:
        return given
    if given is not None:
        raise ConfigError("--tls-self-signed and --tls-cert exclude each other: pass one of them")
    from agentgpt_remote.certificates import self_signed_certificate

    path = str(self_signed_certificate(host))
    return TLS(cert=path, key=path)


def tls_note(tls: TLS | None) -> str:
    """Return what the other side passes to trust the certificate, for a line that says where a server listens."""
    return "" if tls is None else f"; pin: --pin {tls.pin}"


def chosen_token(token: str | None, token_file: str | None) -> str | None:
    """Return the token, read from its file where one is named; raises as :func:`read_secret`."""
    from agentgpt_remote.tokens import read_secret

    return token if token_file is None else read_secret(token_file)


def use_trust(pin: str | None, ca_file: str | None, *, insecure: bool) -> None:
    """Have this process and its children trust what the options say.

    Raises:
        ConfigError: the pin is no fingerprint.
    """
    from agentgpt_remote import tls

    tls.Trust.of(pin, ca_file, insecure=insecure)
    for variable, value in ((tls.PIN_VARIABLE, pin), (tls.CA_VARIABLE, ca_file)):
        if value:
            os.environ[variable] = value
    if insecure:
        os.environ[tls.INSECURE_VARIABLE] = "1"


def parse_settings(settings: list[str], option: str = "--set") -> dict[str, Any]:
    """Return ``FIELD=VALUE`` words as a dict; values are JSON where they can be, else text."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{option} {setting!r}: expected FIELD=VALUE, such as --set max_steps=60000")
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip()] = text
    return values


def where(sources: list[str], max_agents: int | None = None) -> dict[str, Any]:
    """Return the hyperparameters that name the environments.

    Args:
        sources: one source, or URLs.
        max_agents: of each host or room; ``None`` for as many as there are.

    Raises:
        ConfigError: they can't be trained on together.
    """
    urls = [source for source in sources if is_url(source)]
    if not urls and len(sources) == 1:
        if max_agents is not None:
            raise ConfigError(f"--max-agents={max_agents} is for hosts and rooms: pass --set num_envs={max_agents}")
        return {"env_id": sources[0], "env_hosts": {}}
    if len(urls) != len(sources):
        raise ConfigError(f"can't train on {' '.join(sources)} at once: expected one source, or URLs of hosts")
    names = [url.partition("://")[2].strip("/") for url in urls]
    if len(set(names)) != len(names):
        raise ConfigError(f"a host is named twice in {' '.join(urls)}: expected different URLs")
    return {
        "env_id": None,
        "env_hosts": {
            name: {"env_endpoint": url, "num_agents": max_agents} for name, url in zip(names, urls, strict=True)
        },
    }
