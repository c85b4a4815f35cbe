"""One module a peer. Each has a class that the conductor in ``compare.py`` plays: see :class:`peers.peer.Peer`."""
