"""``agentgpt run`` and ``agentgpt export``: serve a bundle, or write it for other runtimes."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from agentgpt_remote.cli.options import (
    Host,
    Insecure,
    Json,
    Port,
    SelfSigned,
    TLSCert,
    TLSKey,
    Token,
    server_tls,
    tls_note,
    use_trust,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(run)
    app.command()(export)


def run(
    bundle: Annotated[
        str, typer.Argument(help="Folder of a policy bundle, such as `runs/CartPole-v1/policy`, or hf://OWNER/NAME.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8080,
    token: Token = None,
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    tls_self_signed: SelfSigned = False,
    insecure: Insecure = False,
    watch: Annotated[bool, typer.Option("--watch", help="Take new weights when the bundle changes.")] = False,
    max_agents: Annotated[
        int | None, typer.Option(min=1, help="Most agents at once; beyond, those idle for longest make room.")
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(min=0, help="How long a request waits for those of others; by default a pass of the model."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs the model: auto (the fastest that is installed), eager, compile or onnx.")
    ] = "auto",
) -> None:
    """Serve a policy until Ctrl-C; `GPTPolicy(url)` acts with it."""
    from agentgpt_remote.policy.opening import open_policies
    from agentgpt_remote.policy.runner import check_engine
    from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy

    def announce(url: str) -> None:
        named = f", behavior={next(iter(opened))!r}" if len(opened) > 1 else ""
        print(
            f'serving {bundle} at {url}; act with GPTPolicy("{url}"{named}){tls_note(tls)}; Ctrl-C ends it', flush=True
        )
        if named:
            print(f"behaviours: {', '.join(opened)}", flush=True)
        told = next(iter(opened.values())).runner.describe()
        print(f"engine {told['engine']}: {told['why']}", flush=True)

    batch_wait_s = None if batch_wait_ms is None else batch_wait_ms / 1000
    options = PolicyServerOptions(
        watch=watch, max_agents=max_agents, batch_wait_s=batch_wait_s, engine=check_engine(engine)
    )
    use_trust(None, None, insecure=insecure)
    tls = server_tls(tls_cert, tls_key, tls_self_signed, host)
    opened = open_policies(bundle, engine=options.engine, max_agents=max_agents)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        serve_policy(opened, host=host, port=port, token=token, tls=tls, options=options, on_ready=announce)


def export(
    bundle: Annotated[str, typer.Argument(help="Folder of a policy bundle, or hf://OWNER/NAME.")],
    out: Annotated[str | None, typer.Option(help="File to write; by default policy.onnx in the bundle.")] = None,
    as_json: Json = False,
) -> None:
    """Write a policy as an ONNX file, for Unity Sentis, C++ or any other runtime, and check it against torch."""
    from agentgpt_remote.policy.export import export_onnx

    result = export_onnx(bundle, out)
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    print(f"wrote {result.path} ({result.bytes:,} bytes, opset {result.opset})")
    print(
        f"outputs are within {result.max_difference:.1e} of torch's over {result.checked_steps} steps; "
        f'act with GPTPolicy("{result.path}"), or from other languages by docs/export.md'
    )
