"""The system's sockets and signals: `socket` and `signal` without an enum member for each constant.

Python's modules of these names load enum and more, which takes 2.8 of the 17 ms of a server's start, and
0.5 MB. So this has the modules that they are made of, if they are there. Those lack what is written in
Python, such as `with`, accept() and fromfd(), and do not see what an application patches in `socket`.
"""

try:
    import _socket as socket
except ImportError:
    import socket
try:
    import _signal as signal
except ImportError:
    import signal

__all__ = ["signal", "socket"]
