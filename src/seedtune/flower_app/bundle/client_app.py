"""What Flower starts for each message on a node: seedtune's, from where it is installed."""

from seedtune.flower_app.client import app as _app

app = _app()
