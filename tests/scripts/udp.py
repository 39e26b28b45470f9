"""Programs that speak UDP, for the scenarios: each is called by its name, with its arguments.

  tell ADDRESS:PORT...        a server at each of these that answers a datagram with the port it came from
  map PORT SECONDS ADDRESS:PORT...
                              sends to each from PORT, prints the answer of each, then waits so long for one datagram
                              from anybody and prints it, or "nobody"
  poke PORT ADDRESS:PORT      sends one datagram from PORT
  resolve ADDRESS COUNT       asks a server as a stub resolver does: each question from a port of its own, with an
                              identifier that the answer must have; prints how many were answered rightly
  answer ADDRESS              such a server on port 53; an answer is as long as its question asks for
"""

import random
import select
import socket
import struct
import sys


def place(text):
    address, port = text.rsplit(":", 1)
    return address.strip("[]"), int(port)


def udp(address=""):
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def tell(*places):
    sockets = []
    for address, port in map(place, places):
        sockets.append(udp(address))
        sockets[-1].bind((address, port))
    while True:
        for ready in select.select(sockets, [], [])[0]:
            data, peer = ready.recvfrom(2048)
            ready.sendto(str(peer[1]).encode(), peer)


def map_(port, seconds, *places):
    s = udp()
    s.bind(("", int(port)))
    s.settimeout(30)
    for to in map(place, places):
        s.sendto(b"who am I", to)
        print(s.recvfrom(2048)[0].decode(), flush=True)
    s.settimeout(float(seconds))
    try:
        print(s.recvfrom(2048)[0].decode(), flush=True)
    except TimeoutError:
        print("nobody", flush=True)


def poke(port, to):
    s = udp()
    s.bind(("", int(port)))
    s.sendto(b"a call", place(to))


def question(identifier, size):
    """A query for the TXT record of SIZE.test (RFC 1035), with an option that allows long answers (RFC 6891)."""
    name = b"".join(bytes([len(label)]) + label for label in (str(size).encode(), b"test")) + b"\0"
    option = struct.pack("!BHHIH", 0, 41, 4096, 0, 0)
    return struct.pack("!6H", identifier, 0x100, 1, 0, 0, 1) + name + struct.pack("!HH", 16, 1) + option


def reply(query):
    identifier = struct.unpack("!H", query[:2])[0]
    size = int(query[13 : 13 + query[12]])
    end = query.index(b"\0", 12) + 5
    body = b"".join(b"\xff" + b"x" * 255 for _ in range(size // 256))
    record = struct.pack("!HHHIH", 0xC00C, 16, 1, 60, len(body)) + body
    return struct.pack("!6H", identifier, 0x8180, 1, 1, 0, 0) + query[12:end] + record


def answer(address):
    s = udp(address)
    s.bind((address, 53))
    while True:
        query, peer = s.recvfrom(4096)
        s.sendto(reply(query), peer)


def resolve(address, count):
    good = 0
    for n in range(int(count)):
        query = question(random.randrange(1 << 16), 256 * (n % 15))
        for _ in range(3):
            s = udp(address)
            s.settimeout(2)
            s.connect((address, 53))
            s.send(query)
            try:
                if s.recv(8192) == reply(query):
                    good += 1
                    break
            except (TimeoutError, ConnectionRefusedError):
                pass
            finally:
                s.close()
    print(good)


globals()[sys.argv[1] + ("_" if sys.argv[1] == "map" else "")](*sys.argv[2:])
