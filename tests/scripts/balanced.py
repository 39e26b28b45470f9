"""Both ends of balanced connections, in a network namespace each.

serve PORT [NAME]       a server on TCP and UDP that tells whoever calls its name: NAME, or the letter of the address
                        that was called (the last number: 11 is A)
call VIP PORT COUNT hold|close SOURCE SOURCES PORT0
                        COUNT connections, one after the other, from SOURCES addresses in turn, the first of which is
                        SOURCE, and from the ports PORT0, PORT0 + 1 and so on (0: any); held until the last was made, or
                        closed at once. Prints the servers' names, x where nobody answers.
ask VIP PORT COUNT one|each
                        the same of datagrams, from one socket or from one each
unwrap KIND             takes what comes through a tunnel (ipip, gre, gue; gue at port 5555) to this host
"""

import fcntl
import os
import select
import socket
import struct
import sys


def letter(address):
    return chr(ord("A") + int(address.rsplit(".", 1)[-1].rsplit(":", 1)[-1]) - 11)


def addresses():
    lines = os.popen("ip -o -4 address show dev eth0").read().splitlines()
    return [line.split()[3].split("/")[0] for line in lines]


def serve(port, name=None):
    listener = socket.create_server(("", int(port)), backlog=256)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    held = {listener.fileno(): listener}
    for address in addresses():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, int(port)))
        poll.register(sock, select.POLLIN)
        held[sock.fileno()] = sock
    while True:
        for fd, _ in poll.poll():
            sock = held[fd]
            if sock is listener:
                call, _ = listener.accept()
                call.sendall((name or letter(call.getsockname()[0])).encode())
                poll.register(call, select.POLLIN)
                held[call.fileno()] = call
            elif sock.type == socket.SOCK_DGRAM:
                _, peer = sock.recvfrom(2048)
                sock.sendto((name or letter(sock.getsockname()[0])).encode(), peer)
            elif not sock.recv(2048):
                poll.unregister(sock)
                held.pop(fd).close()


def call(vip, port, count, how, source, sources, port0):
    start, last = source.rsplit(".", 1)
    held, names = [], ""
    for n in range(int(count)):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(5)
        try:
            sock.bind((f"{start}.{int(last) + n % int(sources)}", int(port0) and int(port0) + n))
            sock.connect((vip, int(port)))
            names += sock.recv(1).decode() or "x"
        except OSError:
            names += "x"
        if how == "close":
            # Until the server has closed, too.
            try:
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
            except OSError:
                pass
            sock.close()
        held.append(sock)
    print(names)


def ask(vip, port, count, how):
    names, sock = "", None
    for n in range(int(count)):
        if sock is None or how == "each":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(5)
        try:
            sock.sendto(b"who?", (vip, int(port)))
            names += sock.recv(1).decode()
        except OSError:
            names += "x"
    print(names)


def unwrap(kind):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF: IFF_TUN without IFF_NO_PI's four bytes.
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tunnel0", 0x1001))
    os.system("ip link set tunnel0 up; echo 0 >/proc/sys/net/ipv4/conf/tunnel0/rp_filter")
    if kind == "gue":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 5555))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4 if kind == "ipip" else 47)
    os.system("touch unwrapping")
    while True:
        packet = sock.recv(65536)
        if kind == "gue":
            inner = packet[4 + 4 * (packet[0] & 31):]
        else:
            inner = packet[4 * (packet[0] & 15):]
            if kind == "gre":
                inner = inner[8 if inner[0] & 0x80 else 4:]
        os.write(tun, inner)


globals()[sys.argv[1]](*sys.argv[2:])
