"""Tells every node to begin: it runs once all of them listen."""

import os
import socket

for node in range(1, int(os.environ["NODES"]) + 1):
    socket.create_connection((f"n{node}", 7100)).sendall(bytes(2))
