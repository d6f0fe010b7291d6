"""Starts a program as systemd starts a socket unit's: `socket_activation.py NAME=tcp NAME=PATH ... -- PROGRAM ARG...`.

Each NAME is the FileDescriptorName= of a listening socket, on a free port of 127.0.0.1 or at the path of a Unix socket. They are
passed from file 3 on, and this process becomes the program, so LISTEN_PID is its own (sd_listen_fds(3)).
"""

import os
import socket
import sys

end = sys.argv.index("--")
names, sockets = [], []
for argument in sys.argv[1:end]:
    name, _, where = argument.partition("=")
    listening = socket.socket(socket.AF_INET if where == "tcp" else socket.AF_UNIX)
    listening.bind(("127.0.0.1", 0) if where == "tcp" else where)
    listening.listen()
    names.append(name)
    sockets.append(listening)

# First out of the way of each other; Python closes on exec what it was not told to hand on.
FIRST = 3
for number, listening in enumerate(sockets):
    os.dup2(listening.fileno(), FIRST + 100 + number)
for number in range(len(sockets)):
    os.dup2(FIRST + 100 + number, FIRST + number, inheritable=True)
    os.set_inheritable(FIRST + 100 + number, False)

os.environ |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names), "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
