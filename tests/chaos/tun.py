"""A TUN device: what is sent to other addresses of its subnet comes out of a file, and what goes in there arrives.

As a program, ``python -m tests.chaos.tun``, it ends with status 0 if the namespace it runs in permits such a device.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SUBNET_MASK = "255.255.255.0"
TUN_FILE = "/dev/net/tun"
DEVICE, LOOPBACK = b"chaos", b"lo"

# linux/if_tun.h, linux/if.h, linux/sockios.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


def open_tun(address: str) -> int:
    """Make a TUN device with an IPv4 address in this process's network namespace, up and running, and loopback too.

    Returns:
        the descriptor at which its packets come out; the device lives as long as any copy of it.

    Raises:
        OSError: the system does not permit it.
    """
    device = os.open(TUN_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, SUBNET_MASK)):
                fcntl.ioctl(
                    control, request, struct.pack("16sHH4s16x", DEVICE, socket.AF_INET, 0, socket.inet_aton(text))
                )
            for name in (DEVICE, LOOPBACK):
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP | _IFF_RUNNING))
    except OSError:
        os.close(device)
        raise
    return device


if __name__ == "__main__":
    open_tun("10.77.0.1")
