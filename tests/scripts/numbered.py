"""Numbered UDP datagrams there and back: `numbered.py serve PORT`, `numbered.py talk HOST PORT FLOWS SECONDS`.

The server returns every datagram. The client keeps a window of each flow on its way, and ends with status 1 as soon as
an answer is missing or comes out of its turn; then each direction has lost or reordered one. At the end it says how many
came.
"""

import select
import socket
import struct
import sys
import time

WINDOW = 24
LOST = 5.0


def serve(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("", port))
    while True:
        data, peer = sock.recvfrom(2048)
        sock.sendto(data, peer)


def talk(host, port, flows, seconds):
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect((host, port))
        sock.setblocking(False)
    sent, due = [0] * flows, [0] * flows
    began = progress = time.monotonic()
    while True:
        now = time.monotonic()
        ending = now - began > seconds
        if ending and sent == due:
            break
        if not ending:
            for flow, sock in enumerate(socks):
                while sent[flow] - due[flow] < WINDOW:
                    sock.send(struct.pack("!Q", sent[flow]) + bytes(92))
                    sent[flow] += 1
        for sock in select.select(socks, [], [], 0.1)[0]:
            flow = socks.index(sock)
            try:
                while True:
                    (number,) = struct.unpack("!Q", sock.recv(2048)[:8])
                    if number != due[flow]:
                        sys.exit(f"flow {flow}: {number} came when {due[flow]} was due")
                    due[flow] += 1
                    progress = now
            except BlockingIOError:
                pass
        if now - progress > LOST:
            sys.exit(f"nothing came for {LOST} s: sent {sent}, came {due}")
    print(sum(due))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    talk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
