"""A site for nginx that lets nodes reach the Fleet interface of the SuperLink on this machine, and nothing else.

It ends TLS with the server's certificate and goes on, under TLS again, to loopback. Ten paths are open, those that a
node with a registered key asks for; Control (who starts runs), Runtime, health and documentation pages are answered
with 403. Both what nginx makes of a path and the path as it was sent must be one of the ten, so no spelling of another
gets by.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DeployError
from . import keys
from .flower import LOOPBACK

FLEET_PATHS = (
    "activate-node", "confirm-message-received", "deactivate-node", "get-fab", "get-run", "pull-messages",
    "pull-object", "push-messages", "push-object", "send-node-heartbeat",
)  # fmt: skip
"""What a SuperNode with a registered key asks for; `register-node`, by which one without would enter, is not there."""


def site(
    folder: Path, hosts: Sequence[str], port: int = 8000, listen: Sequence[str] = ("443", "[::]:443"), body: str = "64m"
) -> str:
    """The site's text, for nginx's http context (on Debian /etc/nginx/conf.d/seedtune.conf).

    folder: with the server's keys. hosts: by which nodes name this machine; empty: by any name. port: where the
    SuperLink listens on loopback. listen: addresses or ports that nodes reach. body: the largest message, which is the
    weights of a whole model where a recipe sends these.

    Raises:
        DeployError: a value that nginx would read as something else.
    """
    for text in (str(folder), *hosts, *listen):
        if not re.fullmatch(r"[\w./:\[\]*-]+", text):
            raise DeployError(f"{text!r}: holds characters that nginx reads as something else; rename it")
    if not re.fullmatch(r"[1-9][0-9]*[kmg]?", body):
        raise DeployError(f"--max-body {body!r}: must be a size such as 64m or 2g")
    paths = "|".join(FLEET_PATHS)
    return _SITE.format(
        loopback=LOOPBACK, port=port, paths=paths, body=body, names=" ".join(hosts) or "_",
        listen="\n".join(f"    listen {one} ssl;" for one in listen),
        ca=folder / keys.CA_CERTIFICATE, certificate=folder / keys.SERVER_CERTIFICATE, key=folder / keys.SERVER_KEY,
    )  # fmt: skip


_SITE = """\
# Written by 'seedtune deploy nginx': nodes reach the Fleet interface of the SuperLink through it, and nothing else.
upstream seedtune_superlink {{
    server {loopback}:{port};
    keepalive 16;
}}

server {{
{listen}
    server_name {names};
    server_tokens off;

    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;

    client_max_body_size {body};
    client_body_timeout 60s;

    location ~ ^/v1/fleet/({paths})$ {{
        if ($request_method != POST) {{ return 403; }}
        if ($request_uri !~ "^/v1/fleet/({paths})$") {{ return 403; }}
        proxy_pass https://seedtune_superlink;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {ca};
        proxy_ssl_name localhost;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 300s;
        proxy_send_timeout 300s;
    }}

    location / {{
        return 403;
    }}
}}
"""
