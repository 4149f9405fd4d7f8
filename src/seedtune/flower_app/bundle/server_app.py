"""What Flower starts as the server: seedtune's, from where it is installed."""

from seedtune.flower_app.server import app as _app

app = _app()
