"""nginx in a folder of its own, with the site that `seedtune deploy nginx` writes; no root, no system service."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedtune.deploy import nginx, places

NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
"""Where it is; None: it is not installed."""


@contextmanager
def proxy(folder: Path, keys: Path, superlink_port: int) -> Iterator[int]:
    """The port on which nodes reach the SuperLink through nginx while the block lasts."""
    port = places.free_port()
    folder.mkdir()
    (folder / "site.conf").write_text(nginx.site(keys, ["localhost"], superlink_port, [f"127.0.0.1:{port}"]))
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in _KINDS)
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n    access_log {folder}/access.log;\n{temporary}    include {folder}/site.conf;\n}}\n"
    )
    arguments = (NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"))
    subprocess.run((*arguments, "-t"), check=True, capture_output=True)
    with subprocess.Popen(arguments) as process:
        try:
            yield port
        finally:
            process.terminate()


_KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
