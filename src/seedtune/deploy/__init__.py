"""A federation on several machines: keys and certificates, Flower's processes started and watched, a reverse proxy.

What is exchanged and how a round works is not here: Flower's app is `flower_app`, a node's worker `engines`.
"""
